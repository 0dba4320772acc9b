"""Losses of rollouts against their papers' formulas, one token at a time, in float64."""

import dataclasses
import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from llmjax import mesh, models
from llmjax.objectives import Critic, PolicyConfig, explained_variance, log_probs, policy
from llmjax.spec import is_param
from llmjax.train import TrainState, make_step
from tests.laws.recorder import RECORDER
from tests.objectives import comparisons
from tests.objectives.comparisons import CONFIG

UNCAPPED = dataclasses.replace(CONFIG, head=models.Head())
VALUE = dataclasses.replace(CONFIG, head=models.Head("value", bias=True))
ROWS = comparisons.examples((2, 1, 3, 1, 2, 1, 3, 0), seed=3)
ACTIONS = sum(len(response) for row in ROWS for _, response in row)
MOST = max(sum(len(response) for _, response in row) for row in ROWS)
NAMES = ("old_log_probs", "advantages", "reference_log_probs", "old_values", "returns")

# name: (settings, critic)
CASES = {
    "ppo": (
        PolicyConfig(dual_clip=1.5, entropy_coefficient=0.3, temperature=0.7),
        Critic(VALUE),
    ),
    "ppo-ptx": (PolicyConfig(pretrain_coefficient=2.0, value_clip=0.0), Critic(VALUE, shared=True)),
    "grpo": (PolicyConfig(aggregation="sequence", kl_coefficient=0.4), None),
    "dapo": (PolicyConfig(clip_high=0.28, kl="k2", kl_coefficient=0.1), None),
    "dr_grpo": (
        PolicyConfig(aggregation="constant", max_length=5, kl_coefficient=0.1),
        None,
    ),
    "gspo": (PolicyConfig(ratio="sequence", aggregation="sequence", clip_low=0.1), None),
}


def spec_of(case):
    _, critic = CASES[case]
    return models.spec(CONFIG) if critic is None else critic.spec(CONFIG)


@pytest.fixture(scope="module")
def rollouts():
    """What a rollout knows of each action, in the order of `ROWS`."""
    random = np.random.RandomState(5)
    found = {name: random.normal(size=ACTIONS) for name in NAMES}
    for name in ("old_log_probs", "reference_log_probs"):
        found[name] = -random.uniform(1.5, 4.5, ACTIONS)
    return found


def batch_of(case, rollouts, side="right"):
    """Rows; of pretraining, the fourth and the seventh are text, of unequal weights."""
    batch = comparisons.as_rows(ROWS, side)
    there = batch["targets"] >= 0
    for name, values in rollouts.items():
        batch[name] = np.full(there.shape, 7.0)  # what stands elsewhere must not matter
        batch[name][there] = values
    if CASES[case][0].pretrain_coefficient:
        batch["pretrain_weights"] = np.where(there, 0.0, 0.0)
        batch["pretrain_weights"][3] = there[3]
        batch["pretrain_weights"][6] = 0.5 * there[6]
    return batch


@dataclasses.dataclass
class Token:
    """What is known of one action, and the index of its row."""

    row: int
    log_prob: float
    entropy: float
    value: float
    known: dict[str, float]


def responses_of(case, params, rollouts) -> list[list[Token]]:
    settings, critic = CASES[case]
    model = params if critic is None else critic.policy(params)
    tokens = comparisons.tokens_alone(model, ROWS, settings.temperature)
    values = [[[0.0] * len(response) for _, response in row] for row in ROWS]
    if critic is not None:
        head = params["value_head"] if critic.shared else params["critic"]["head"]
        backbone = model if critic.shared else params["critic"]
        states = comparisons.states_alone(backbone, ROWS, CONFIG if critic.shared else VALUE)
        values = [
            [
                (x[len(prompt) - 1 : -1] @ head["out"] + head["out_bias"])[:, 0]
                for x, (prompt, _) in zip(*pair, strict=True)
            ]
            for pair in zip(states, ROWS, strict=True)
        ]
    actions = zip(*rollouts.values(), strict=True)
    known = iter([dict(zip(rollouts, action, strict=True)) for action in actions])
    return [
        [
            Token(i, log_prob, entropy, value, next(known))
            for (log_prob, entropy), value in zip(tokens[i][j], values[i][j], strict=True)
        ]
        for i, row in enumerate(ROWS)
        for j in range(len(row))
    ]


def surrogate(ratio, advantage, settings):
    bounded = min(max(ratio, 1 - settings.clip_low), 1 + settings.clip_high)
    objective = min(ratio * advantage, bounded * advantage)
    if settings.dual_clip and advantage < 0:
        objective = max(objective, settings.dual_clip * advantage)
    return -objective


def token_loss(token: Token, ratio: float, settings, critic) -> float:
    known = token.known
    total = surrogate(ratio, known["advantages"], settings)
    apart = token.log_prob - known["reference_log_probs"]
    kl = {"k1": apart, "k2": apart**2 / 2, "k3": math.exp(-apart) - 1 + apart}[settings.kl]
    total += settings.kl_coefficient * kl - settings.entropy_coefficient * token.entropy
    if critic is not None:
        error = (token.value - known["returns"]) ** 2
        if settings.value_clip:
            moved = token.value - known["old_values"]
            moved = min(max(moved, -settings.value_clip), settings.value_clip)
            error = max(error, (known["old_values"] + moved - known["returns"]) ** 2)
        total += settings.value_coefficient * error / 2
    return total


def by_hand(case, params, rollouts):
    """The mean that the method's paper asks for."""
    settings, critic = CASES[case]
    texts = {3: 1.0, 6: 0.5} if settings.pretrain_coefficient else {}
    responses = responses_of(case, params, rollouts)
    acting = [response for response in responses if response[0].row not in texts]
    losses = []
    for response in acting:
        ratios = [math.exp(t.log_prob - t.known["old_log_probs"]) for t in response]
        if settings.ratio == "sequence":
            ratios = [math.prod(ratios) ** (1 / len(ratios))] * len(ratios)
        pairs = zip(response, ratios, strict=True)
        losses.append([token_loss(t, ratio, settings, critic) for t, ratio in pairs])
    if settings.aggregation == "token":
        total = sum(map(sum, losses)) / sum(map(len, losses))
    elif settings.aggregation == "sequence":
        total = sum(sum(x) / len(x) for x in losses) / len(losses)
    else:
        total = sum(map(sum, losses)) / settings.max_length / len(losses)
    if texts:
        weighted = [(texts[t.row], t.log_prob) for r in responses for t in r if t.row in texts]
        mean = sum(w * x for w, x in weighted) / sum(w for w, _ in weighted)
        total -= settings.pretrain_coefficient * mean
    return total


def moved(params, way, step):
    return jax.tree.map(lambda x, d: x + step * d, params, way)


@functools.cache
def compiled(case):
    """The loss (prepared or not), and its gradient by the parameters."""
    settings, critic = CASES[case]
    # Half of the methods are told how many targets a row has at most.
    most = MOST if case in ("ppo", "gspo", "dr_grpo") else None
    loss = policy(CONFIG, settings, critic=critic, most_targets=most)

    def scalar(params, batch):
        weighted, metrics = loss(params, batch, None)
        return weighted.sum, (weighted, metrics)

    return jax.jit(jax.value_and_grad(scalar, has_aux=True)), jax.jit(
        lambda batch: loss.prepare(batch, None)
    )


@pytest.mark.parametrize("case", CASES)
def test_losses_are_the_papers(case, rollouts, draw):
    """On either side of the padding; and the slope along a direction is the judge's, too."""
    random = np.random.RandomState(1)
    with jax.enable_x64(True):
        params = comparisons.wide(draw(spec_of(case)))
        for side in ("left", "right"):
            batch = batch_of(case, rollouts, side)
            (total, (weighted, _)), grads = compiled(case)[0](params, batch)
            expected = by_hand(case, params, rollouts)
            np.testing.assert_allclose(float(total) / float(weighted.weight), expected, rtol=1e-9)
        way = jax.tree.map(lambda x: random.normal(size=x.shape), params)
        up, down = (by_hand(case, moved(params, way, s), rollouts) for s in (1e-6, -1e-6))
        along = sum(np.vdot(g, d) for g, d in zip(*map(jax.tree.leaves, (grads, way)), strict=True))
    assert weighted.weight == (9 if case == "ppo-ptx" else 13)
    assert along / float(weighted.weight) == pytest.approx((up - down) / 2e-6, rel=1e-4)


def test_metrics_are_means_over_actions(rollouts, draw):
    settings, _ = CASES["ppo"]
    with jax.enable_x64(True):
        params = comparisons.wide(draw(spec_of("ppo")))
        (_, (weighted, metrics)), _ = compiled("ppo")[0](params, batch_of("ppo", rollouts))
        found = {name: float(x) / float(weighted.weight) for name, x in metrics.items()}
        tokens = [t for response in responses_of("ppo", params, rollouts) for t in response]
    ratios = np.array([math.exp(t.log_prob - t.known["old_log_probs"]) for t in tokens])
    advantages, returns = (
        np.array([t.known[name] for t in tokens]) for name in ("advantages", "returns")
    )
    apart = np.array([t.log_prob - t.known["reference_log_probs"] for t in tokens])
    values = np.array([t.value for t in tokens])
    expected = {
        "ratio": ratios,
        "approx_kl": ratios - 1 - np.log(ratios),
        "clipped_low": (ratios < 0.8) & (advantages < 0),
        "clipped_high": (ratios > 1.2) & (advantages > 0),
        "dual_clipped": (ratios > settings.dual_clip) & (advantages < 0),
        "ratio_outside": (ratios < 0.8) | (ratios > 1.2),
        "ratio_extreme": (ratios < 0.5) | (ratios > 2),
        "entropy": np.array([t.entropy for t in tokens]),
        "kl": np.exp(-apart) - 1 + apart,
        "value": values,
        "return": returns,
    }
    for name, each in expected.items():
        np.testing.assert_allclose(found[name], each.mean(), rtol=1e-9, err_msg=name)
        assert abs(found[name]) > 0
    np.testing.assert_allclose(
        explained_variance(found), 1 - (returns - values).var() / returns.var(), rtol=1e-9
    )


def test_the_divergence_of_tokens_is_reported_with_ratios_of_sequences(rollouts, draw):
    with jax.enable_x64(True):
        params = comparisons.wide(draw(spec_of("gspo")))
        (_, (weighted, metrics)), _ = compiled("gspo")[0](params, batch_of("gspo", rollouts))
        found = {name: float(metrics[name]) / float(weighted.weight) for name in metrics}
        responses = responses_of("gspo", params, rollouts)
    logs = [[t.log_prob - t.known["old_log_probs"] for t in response] for response in responses]
    each = np.concatenate(logs)
    assert found["approx_kl"] == pytest.approx(np.mean(np.exp(each) - 1 - each), rel=1e-9)
    ratios = np.concatenate([np.full(len(x), np.exp(np.mean(x))) for x in logs])
    assert found["ratio"] == pytest.approx(ratios.mean(), rel=1e-9)


def test_every_cut_gives_one_loss(rollouts, draw):
    """Rows of the prepared batch one by one, though three of them have no response."""
    gradient, prepare = compiled("ppo-ptx")
    with jax.enable_x64(True):
        params = comparisons.wide(draw(spec_of("ppo-ptx")))
        batch = batch_of("ppo-ptx", rollouts)
        ready = prepare(batch)
        parts = [gradient(params, {n: x[i : i + 1] for n, x in ready.items()}) for i in range(8)]
        together = functools.reduce(lambda a, b: jax.tree.map(jnp.add, a, b), parts)
        jax.tree.map(
            functools.partial(np.testing.assert_allclose, rtol=1e-10, atol=1e-10),
            together,
            gradient(params, batch),
        )


def test_a_step_on_a_mesh_by_micro_batches_equals_one_device(rollouts, draw):
    """Rows, sequences and vocabulary shared between devices; a ratio of sequences."""
    config = dataclasses.replace(UNCAPPED, dtype="float32")
    critic = Critic(dataclasses.replace(VALUE, dtype="float32"), shared=True)
    settings = dataclasses.replace(CASES["ppo-ptx"][0], ratio="sequence", temperature=0.7)
    declared, loss = critic.spec(config), policy(config, settings, critic=critic)
    batch = {
        name: x.astype(np.float32) if x.dtype == float else x
        for name, x in batch_of("ppo-ptx", rollouts).items()
    }

    @jax.jit
    @functools.partial(jax.value_and_grad, has_aux=True)
    def mean(params):
        weighted, metrics = loss(params, batch, None)
        return weighted.sum / weighted.weight, (metrics, weighted.weight)

    (total, (sums, weight)), grads = jax.device_get(mean(draw(declared)))
    with jax.set_mesh(mesh.make_mesh(mesh.MeshConfig(data=2, tensor=2, context=2))):
        params = jax.tree.map(
            lambda param, x: jax.device_put(x, mesh.named_sharding(param.axes)),
            declared,
            draw(declared),
            is_leaf=is_param,
        )
        state = TrainState(jnp.int32(0), params, RECORDER.init(params), jax.random.key(0))
        step = make_step(loss, RECORDER, accumulate=2)
        state, metrics = step(state, mesh.shard_batch(batch))
        found, metrics = jax.device_get((state.opt_state.grads, metrics))
    close = functools.partial(np.testing.assert_allclose, rtol=2e-4, atol=1e-5)
    close(metrics["loss"], total)
    assert metrics["tokens"] == weight == 9
    for name, value in sums.items():
        close(metrics[name], value / weight)
    jax.tree.map(close, found, grads)


def test_places_without_a_target_need_no_logits(rollouts, draw):
    """On a mesh too; and what a row has too many of is no number rather than left out."""
    params, batch = draw(models.spec(CONFIG)), batch_of("grpo", rollouts)
    batch = {name: batch[name] for name in ("tokens", "targets", "segment_ids")}

    def found(params, batch, most):
        config = dataclasses.replace(CONFIG, dtype="float32")
        said = log_probs(params, batch, config, entropy=True, most_targets=most)
        return said.targets, said.entropies

    here = jax.jit(found, static_argnums=2)
    everywhere = here(params, batch, None)
    close = functools.partial(np.testing.assert_allclose, rtol=1e-5, atol=1e-6)
    jax.tree.map(close, here(params, batch, MOST), everywhere)
    with jax.set_mesh(mesh.make_mesh(mesh.MeshConfig(data=2, fsdp=2, tensor=2))):
        placed = jax.tree.map(
            lambda param, x: jax.device_put(x, mesh.named_sharding(param.axes)),
            models.spec(CONFIG),
            params,
            is_leaf=is_param,
        )
        spread = jax.jit(found, static_argnums=2)(placed, mesh.shard_batch(batch), MOST)
    jax.tree.map(close, jax.device_get(spread), everywhere)
    short, _ = here(params, batch, MOST - 1)
    lost = np.cumsum(batch["targets"] >= 0, axis=1) * (batch["targets"] >= 0) == MOST
    np.testing.assert_array_equal(np.isnan(short), lost)


def test_the_first_update_needs_no_old_log_probs(rollouts, draw):
    """Ratios are 1 and the gradient that of -A log P, REINFORCE's; tokens count `weights`."""
    batch = batch_of("grpo", rollouts)
    batch = {name: batch[name] for name in ("tokens", "targets", "segment_ids", "advantages")}
    batch["weights"] = np.random.RandomState(2).uniform(0, 1, batch["targets"].shape)
    loss = policy(CONFIG, PolicyConfig(aggregation="sequence"))
    with jax.enable_x64(True):
        params = comparisons.wide(draw(models.spec(CONFIG)))
        total, grads = jax.jit(jax.value_and_grad(lambda params: loss(params, batch, None)[0].sum))(
            params
        )
        random = np.random.RandomState(1)
        way = jax.tree.map(lambda x: random.normal(size=x.shape), params)
        along = sum(np.vdot(g, d) for g, d in zip(*map(jax.tree.leaves, (grads, way)), strict=True))
        each = (batch["weights"] * batch["advantages"])[batch["targets"] >= 0]

        def reinforce(step):
            tokens = comparisons.tokens_alone(moved(params, way, step), ROWS)
            return -np.dot(each, [x for row in tokens for response in row for x, _ in response])

        assert float(total) == pytest.approx(-each.sum(), rel=1e-9)
        assert along == pytest.approx((reinforce(1e-6) - reinforce(-1e-6)) / 2e-6, rel=1e-5)


def test_bad_input_is_named(rollouts):
    with pytest.raises(ValueError, match="head.kind=lm, not value"):
        policy(VALUE)
    with pytest.raises(ValueError, match="head.kind=value, not lm"):
        Critic(CONFIG)
    with pytest.raises(
        ValueError, match=r"capped logits \(head.cap\) a batch has a single temperature"
    ):
        policy(CONFIG, PolicyConfig(temperature=0.5, pretrain_coefficient=1.0))
    wider = dataclasses.replace(VALUE, embed_dim=32)
    with pytest.raises(ValueError, match="hidden states of width 32, but the policy's have 16"):
        Critic(wider, shared=True).spec(CONFIG)
    critic, batch = CASES["ppo"][1], batch_of("ppo-ptx", rollouts)
    for name, settings in {
        "advantages": PolicyConfig(),
        "reference_log_probs": PolicyConfig(kl_coefficient=0.1),
        "returns": PolicyConfig(),
        "old_values": PolicyConfig(),
        "pretrain_weights": PolicyConfig(pretrain_coefficient=1.0),
    }.items():
        lacking = {other: x for other, x in batch.items() if other != name}
        with pytest.raises(ValueError, match=f'no "{name}"'):
            policy(CONFIG, settings, critic=critic)({}, lacking, None)
