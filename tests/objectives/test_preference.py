"""DPO and its relatives against their papers' formulas, one response at a time, in float64."""

import dataclasses
import functools
import itertools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from llmjax import mesh, models
from llmjax.objectives import PreferenceConfig, log_probs, preference
from llmjax.objectives.preference import Scores, kto_loss, pair_loss
from llmjax.train import TrainState, make_step
from tests.laws.recorder import RECORDER
from tests.objectives import comparisons
from tests.objectives.comparisons import CONFIG, log_sigmoid, sigmoid

ROWS = comparisons.examples()
LABELS = np.array([1, 0, 0, 1, -1, 1, 0, 1], np.int32)
SETTINGS = {
    "dpo": PreferenceConfig(beta=0.3),
    "dpo, smoothed, with sft": PreferenceConfig(label_smoothing=0.2, sft=0.5),
    "dpo, averaged": PreferenceConfig(beta=2.0, average=True),
    "ipo": PreferenceConfig("ipo", beta=0.2),
    "ipo, averaged": PreferenceConfig("ipo", beta=0.2, average=True),
    "orpo": PreferenceConfig("orpo", beta=0.5),
    "simpo": PreferenceConfig("simpo", beta=2.0, gamma=0.7, sft=0.1),
}
KTO = PreferenceConfig("kto", beta=0.4, desirable=1.5, undesirable=0.7)


def by_hand(kind, policy, reference, lengths):
    """(Σ over rows of the mean over pairs, rows with one), from log-probabilities of responses."""
    settings, total, count = SETTINGS[kind], 0.0, 0
    beta = settings.beta
    for row in zip(policy, reference, lengths, strict=True):
        pairs = list(itertools.combinations(zip(*row, strict=True), 2))
        count += bool(pairs)
        for (w, ref_w, n_w), (l, ref_l, n_l) in pairs:  # noqa: E741
            h = (w - ref_w) - (l - ref_l)
            if settings.average:
                h = (w - ref_w) / n_w - (l - ref_l) / n_l
            if settings.kind == "dpo":
                noise = settings.label_smoothing
                cost = -(1 - noise) * log_sigmoid(beta * h) - noise * log_sigmoid(-beta * h)
            elif settings.kind == "ipo":
                cost = (h - 1 / (2 * beta)) ** 2
            elif settings.kind == "simpo":
                cost = -log_sigmoid(beta / n_w * w - beta / n_l * l - settings.gamma)
            else:
                p_w, p_l = math.exp(w / n_w), math.exp(l / n_l)
                odds = math.log(p_w / (1 - p_w)) - math.log(p_l / (1 - p_l))
                cost = -w / n_w - beta * log_sigmoid(odds)
            total += (cost - settings.sft * w / n_w) / len(pairs)
    return total, count


def kto_by_hand(policy, reference, labels):
    """Of rows of two responses, the second unrelated to its prompt."""
    rows = [(p, r, y) for p, r, y in zip(policy, reference, labels, strict=True) if y >= 0 and p]
    kl = [p[1] - r[1] for p, r, _ in rows if len(p) > 1]
    kl = max(0.0, sum(kl) / len(kl))
    total = 0.0
    for p, r, label in rows:
        ratio = p[0] - r[0]
        if label == 1:
            total += KTO.desirable - KTO.desirable * sigmoid(KTO.beta * (ratio - kl))
        else:
            total += KTO.undesirable - KTO.undesirable * sigmoid(KTO.beta * (kl - ratio))
    return total, len(rows), kl


@pytest.fixture(scope="module")
def params(draw):
    """{"policy": ..., "reference": ...}: a model and another, as full fine-tuning has them."""
    policy = comparisons.wide(draw(models.spec(CONFIG)))
    random = np.random.RandomState(0)
    other = jax.tree.map(lambda x: x + 0.1 * random.normal(size=x.shape), policy)
    return {"policy": policy, "reference": other}


@pytest.fixture(scope="module")
def alone(params):
    """Log-probabilities of responses under both, and lengths."""
    with jax.enable_x64(True):
        tokens = [comparisons.tokens_alone(params[name], ROWS) for name in params]
    sums = [[[sum(x for x, _ in response) for response in row] for row in m] for m in tokens]
    return *sums, [[len(response) for _, response in row] for row in ROWS]


@functools.cache
def compiled(settings):
    """(policy's parameters, reference's, batch) to the loss; of three responses."""

    def both(policy, reference, batch):
        loss = preference(CONFIG, settings, reference=lambda _: reference, responses=3)
        return loss(policy, batch, None)

    return jax.jit(both)


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("kind", SETTINGS)
def test_losses_are_those_of_responses_alone(kind, side, params, alone):
    batch = comparisons.as_rows(ROWS, side)
    with jax.enable_x64(True):
        found, metrics = compiled(SETTINGS[kind])(params["policy"], params["reference"], batch)
    total, count = by_hand(kind, *alone)
    np.testing.assert_allclose(found.sum, total, rtol=1e-9)
    assert found.weight == count
    policy = [list(itertools.combinations(row, 2)) for row in alone[0]]
    chosen = sum(sum(w for w, _ in row) / len(row) for row in policy if row)
    np.testing.assert_allclose(metrics["chosen_log_prob"], chosen, rtol=1e-9)
    if kind == "dpo":
        rows = zip(*alone[:2], strict=True)
        rewards = [[0.3 * (p - r) for p, r in zip(*row, strict=True)] for row in rows]
        pairs = [list(itertools.combinations(row, 2)) for row in rewards]
        right = sum(sum(w > l for w, l in row) / len(row) for row in pairs if row)  # noqa: E741
        margin = sum(sum(w - l for w, l in row) / len(row) for row in pairs if row)  # noqa: E741
        np.testing.assert_allclose(metrics["accuracy"], right)
        np.testing.assert_allclose(metrics["margin"], margin, rtol=1e-9)


@pytest.mark.parametrize("side", ["left", "right"])
def test_kto(side, params, alone):
    """And with the models changed over: one baseline is above 0, the other would be below."""
    batch = comparisons.as_rows([row[:2] for row in ROWS], side) | {"labels": LABELS}
    baselines = []
    for order in ((0, 1), (1, 0)):
        names = [("policy", "reference")[i] for i in order]
        with jax.enable_x64(True):
            found, metrics = compiled(KTO)(*(params[name] for name in names), batch)
        total, count, kl = kto_by_hand(*(alone[i] for i in order), LABELS)
        np.testing.assert_allclose(found.sum, total, rtol=1e-9)
        assert found.weight == count == 6
        np.testing.assert_allclose(float(metrics["kl"]) / count, kl, rtol=1e-9)
        assert metrics["desirable"] == 3
        baselines.append(kl)
    assert min(baselines) == 0 < max(baselines)


@pytest.mark.parametrize("kind", SETTINGS)
def test_gradients_are_slopes(kind):
    """By the log-probabilities of the policy; rows without a pair have none."""
    random = np.random.RandomState(1)
    lengths = random.randint(1, 5, (4, 3)).astype(float)
    lengths[2, 2] = lengths[3, 1:] = 0
    policy, reference = (-lengths * random.uniform(0.5, 3, (4, 3)) for _ in range(2))

    def hand(policy):
        counts = (lengths > 0).sum(1)
        arrays = (policy, reference, lengths)
        return by_hand(
            kind, *([x[:n] for x, n in zip(array, counts, strict=True)] for array in arrays)
        )[0]

    def ours(policy):
        return pair_loss(Scores(policy, reference, lengths), SETTINGS[kind])[0].sum

    with jax.enable_x64(True):
        found = jax.jit(jax.grad(ours))(policy)
    np.testing.assert_allclose(found, comparisons.slope(hand, policy), atol=1e-7)
    assert np.all(found[3] == 0)


def test_the_gradient_of_kto_leaves_the_baseline_alone():
    """The slope with z held: none by the unrelated responses."""
    random = np.random.RandomState(2)
    policy, reference = random.normal(size=(2, 6, 2)) - [[[3.0]], [[4.0]]]
    labels = LABELS[:6]
    _, _, kl = kto_by_hand(policy.tolist(), reference.tolist(), labels)

    def ours(policy):
        return kto_loss(Scores(policy, reference, np.ones((6, 2))), labels, KTO)[0].sum

    def hand(policy):
        leads = KTO.beta * (policy[:, 0] - reference[:, 0] - kl)
        values = {1: lambda x: 1.5 * sigmoid(-x), 0: lambda x: 0.7 * sigmoid(x), -1: lambda x: 0.0}
        return sum(values[y](x) for x, y in zip(leads, labels, strict=True))

    with jax.enable_x64(True):
        found = jax.jit(jax.grad(ours))(policy)
    np.testing.assert_allclose(found, comparisons.slope(hand, policy), atol=1e-8)


def test_no_gradient_reaches_the_reference(params):
    """Which is here a part of the tree that is trained; at the policy itself the loss is log 2."""
    loss = preference(CONFIG, SETTINGS["dpo"], reference=lambda params: params, responses=3)
    given = preference(CONFIG, SETTINGS["dpo"], responses=3)
    batch = comparisons.as_rows(ROWS)

    @jax.jit
    def both(params):
        of_itself = log_probs(params, batch, CONFIG).targets
        batches = batch | {"reference_log_probs": of_itself}
        one = jax.value_and_grad(lambda params: loss(params, batch, None)[0].sum)
        two = jax.value_and_grad(lambda params: given(params, batches, None)[0].sum)
        return one(params), two(params)

    with jax.enable_x64(True):
        ours, fixed = both(params["policy"])
    np.testing.assert_allclose(ours[0], 6 * math.log(2), rtol=1e-12)
    jax.tree.map(functools.partial(np.testing.assert_allclose, atol=1e-12), ours, fixed)
    assert max(np.abs(x).max() for x in jax.tree.leaves(ours[1])) > 0.01


def test_every_cut_gives_one_loss(params):
    settings, batch = SETTINGS["dpo, smoothed, with sft"], comparisons.as_rows(ROWS)
    with jax.enable_x64(True):
        loss = functools.partial(compiled(settings), params["policy"], params["reference"])
        parts = [loss({name: x[part::2] for name, x in batch.items()}) for part in range(2)]
        jax.tree.map(
            functools.partial(np.testing.assert_allclose, rtol=1e-12, atol=1e-12),
            jax.tree.map(jnp.add, *parts),
            loss(batch),
        )


def test_micro_batches_share_the_baseline_of_kto(params, alone):
    """Which differs between them, and is above 0 for one order of the models."""
    orders = ((0, 1), (1, 0))
    kl, order = max((kto_by_hand(*(alone[i] for i in o), LABELS)[2], o) for o in orders)
    both = list(jax.tree.map(np.float32, params).values())
    whole = both[order[0]] | {"reference": both[order[1]]}
    batch = comparisons.as_rows([row[:2] for row in ROWS]) | {"labels": LABELS}
    config = dataclasses.replace(CONFIG, dtype="float32")
    loss = preference(config, KTO, reference=lambda params: params["reference"])

    def step(accumulate):
        arrays = jax.tree.map(jnp.array, whole)
        state = TrainState(jnp.int32(0), arrays, RECORDER.init(arrays), jax.random.key(0))
        made = make_step(loss, RECORDER, accumulate=accumulate)
        state, metrics = made(state, mesh.shard_batch(batch))
        return jax.device_get((metrics["loss"], metrics["kl"], state.opt_state.grads))

    found = step(1)
    assert found[1] == pytest.approx(kl, rel=1e-4)
    close = functools.partial(np.testing.assert_allclose, rtol=1e-4, atol=1e-6)
    jax.tree.map(close, step(4), found)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"kind": "ppo"}, "preference.kind='ppo'"),
        ({"beta": 0.0}, "beta=0.0: must be above 0"),
        ({"label_smoothing": 0.5}, r"must be in \[0, 0.5\)"),
        ({"kind": "kto", "sft": 0.1}, "sft=0.1: only for dpo, ipo, simpo, not kto"),
        ({"kind": "simpo", "average": True}, "average=True: only for dpo, ipo, not simpo"),
        ({"gamma": 0.5}, "gamma=0.5: only for simpo, not dpo"),
        ({"kind": "ipo", "desirable": 0.0}, "desirable=0.0: only for kto, not ipo"),
    ],
)
def test_settings_that_mean_nothing_are_refused(fields, message):
    with pytest.raises(ValueError, match=message):
        PreferenceConfig(**fields)


def test_what_a_batch_lacks_is_named(params):
    batch = comparisons.as_rows(ROWS[:2])
    with jax.enable_x64(True):
        with pytest.raises(ValueError, match='no "reference_log_probs"'):
            preference(CONFIG, SETTINGS["dpo"])(params["policy"], batch, None)
        with pytest.raises(ValueError, match='no "labels"'):
            compiled(KTO)(params["policy"], params["reference"], batch)
    with pytest.raises(ValueError, match="head.kind=lm, not reward"):
        preference(comparisons.with_head("reward"), KTO)
