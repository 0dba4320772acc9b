"""Rewards by comparison: Bradley and Terry by hand, whatever the padding and the cut."""

import dataclasses
import functools
import itertools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from llmjax import mesh, models
from llmjax.objectives import RewardConfig, ensemble_rewards, reward
from llmjax.objectives.reward import ranking_loss
from llmjax.spec import is_param
from tests.objectives import comparisons
from tests.objectives.comparisons import COUNTS, log_sigmoid

CONFIG = comparisons.with_head("reward")
ROWS = comparisons.examples()
MARGIN = np.array([0.0, 0.5, 1.0, 0.0, 2.0, 0.3, 1.0, 1.0])


@pytest.fixture(scope="module")
def rewards(draw):
    """Of each response in a row of its own, at its last token."""
    with jax.enable_x64(True):
        params = comparisons.wide(draw(models.spec(CONFIG)))
        states = comparisons.states_alone(params, ROWS, CONFIG)
        return [[float(x[-1] @ params["head"]["out"][:, 0]) for x in row] for row in states]


def by_hand(rewards, ranking, centring, margins):
    """Loss and number of rows, one pair or rank at a time."""
    total = count = 0
    for row, margin in zip(rewards, margins, strict=True):
        pairs = list(itertools.combinations(row, 2))
        if not pairs:
            continue
        count += 1
        if ranking == "pairs":
            costs = [-log_sigmoid(better - worse - margin) for better, worse in pairs]
            total += sum(costs) / len(pairs)
        else:
            for i in range(len(row)):
                total -= row[i] - math.log(sum(math.exp(r) for r in row[i:]))
        total += centring * sum((a + b) ** 2 for a, b in pairs) / len(pairs)
    return total, count


@functools.cache
def compiled(settings):
    loss = reward(CONFIG, settings, responses=3)
    return jax.jit(lambda params, batch: loss(params, batch, None))


CASES = {
    "pairs": (RewardConfig(), None),
    "margins, centred": (RewardConfig(centring=0.1), MARGIN),
    "plackett_luce, centred": (RewardConfig("plackett_luce", centring=0.1), None),
}


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("case", CASES)
def test_losses_are_those_of_responses_alone(case, side, rewards, draw):
    settings, margin = CASES[case]
    batch = comparisons.as_rows(ROWS, side)
    if margin is not None:
        batch["margin"] = margin
    with jax.enable_x64(True):
        params = comparisons.wide(draw(models.spec(CONFIG)))
        found, metrics = compiled(settings)(params, batch)
    margins = np.zeros(8) if margin is None else margin
    total, count = by_hand(rewards, settings.ranking, settings.centring, margins)
    np.testing.assert_allclose(found.sum, total, rtol=1e-10)
    assert found.weight == count == sum(n > 1 for n in COUNTS)

    pairs = [list(itertools.combinations(row, 2)) for row in rewards]
    means = {
        "accuracy": lambda a, b: a > b,
        "margin": lambda a, b: a - b,
        "chosen": lambda a, b: a,
        "rejected": lambda a, b: b,
    }
    for name, of in means.items():
        expected = sum(sum(of(*pair) for pair in row) / len(row) for row in pairs if row)
        np.testing.assert_allclose(metrics[name], expected, rtol=1e-10)
    assert 0 < metrics["accuracy"] < count


def test_the_gradient_is_the_slope(rewards):
    """By rewards; a row of nothing and one of a single response have none."""
    values = np.array([row + [9.0] * (3 - len(row)) for row in rewards])
    present = np.arange(3) < np.array(COUNTS)[:, None]
    for settings, margin in CASES.values():
        margins = np.zeros(8) if margin is None else margin

        def hand(values, settings=settings, margins=margins):
            rows = [list(row[:n]) for row, n in zip(values, COUNTS, strict=True)]
            return by_hand(rows, settings.ranking, settings.centring, margins)[0]

        with jax.enable_x64(True):
            gradient = jax.jit(jax.grad(ranking_loss), static_argnums=2)
            found = gradient(values, present, settings, margin)
        np.testing.assert_allclose(found, comparisons.slope(hand, values), atol=1e-8)


def test_limits_of_bradley_and_terry():
    """log 2 where there is no difference; nothing, or the difference, where it is large."""

    def cost(difference, **fields):
        scores = jnp.array([[difference, 0.0]])
        return float(ranking_loss(scores, jnp.ones((1, 2), bool), RewardConfig(**fields)))

    for ranking in ("pairs", "plackett_luce"):
        assert cost(0.0, ranking=ranking) == pytest.approx(math.log(2))
        assert cost(200.0, ranking=ranking) == 0
        assert cost(-200.0, ranking=ranking) == 200


def test_every_cut_gives_one_loss(draw):
    batch = comparisons.as_rows(ROWS) | {"margin": MARGIN}
    loss = compiled(RewardConfig(centring=0.1))
    with jax.enable_x64(True):
        params = comparisons.wide(draw(models.spec(CONFIG)))
        whole = loss(params, batch)
        parts = [
            loss(params, {name: rows[part::2] for name, rows in batch.items()}) for part in range(2)
        ]
        jax.tree.map(
            functools.partial(np.testing.assert_allclose, rtol=1e-12),
            jax.tree.map(jnp.add, *parts),
            whole,
        )


def test_a_mesh_equals_one_device(draw):
    config = dataclasses.replace(CONFIG, dtype="float32")
    batch, declared = comparisons.as_rows(ROWS), models.spec(config)
    params = draw(declared)
    loss = reward(config, responses=3)

    @jax.jit
    def gradient(params, batch):
        return jax.value_and_grad(lambda params: loss(params, batch, None)[0].sum)(params)

    alone = gradient(params, batch)
    with jax.set_mesh(mesh.make_mesh(mesh.MeshConfig(data=2, fsdp=2, context=2))):
        placed = jax.tree.map(
            lambda p, value: jax.device_put(value, mesh.named_sharding(p.axes)),
            declared,
            params,
            is_leaf=is_param,
        )
        found = jax.device_get(gradient(placed, mesh.shard_batch(batch)))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5), found, alone)


def test_ensembles_by_hand():
    members = np.array([[1.0, 4.0], [2.0, -2.0], [6.0, 1.0]])
    np.testing.assert_allclose(ensemble_rewards(members), [3.0, 1.0])
    np.testing.assert_allclose(ensemble_rewards(members, "min"), [1.0, -2.0])
    # Variances 14/3 and 6.
    expected = [3 - 14 / 6, 1 - 3]
    np.testing.assert_allclose(ensemble_rewards(members, "uncertainty", 0.5), expected, rtol=1e-6)


def test_bad_input_is_named(draw):
    with pytest.raises(ValueError, match="not lm"):
        reward(comparisons.CONFIG)
    config = dataclasses.replace(CONFIG, dtype="float32")
    params, batch = draw(models.spec(config)), comparisons.as_rows(ROWS[:2])
    luce = reward(config, RewardConfig("plackett_luce"))
    with pytest.raises(ValueError, match='does not support a "margin"'):
        luce(params, batch | {"margin": MARGIN[:2]}, None)
    with pytest.raises(ValueError, match='no "segment_ids"'):
        luce(params, {"tokens": batch["tokens"]}, None)
    with pytest.raises(ValueError, match="responses=1 cannot be compared"):
        reward(config, responses=1)(params, batch, None)
    with pytest.raises(ValueError, match="reward.ranking='triples'"):
        RewardConfig("triples")
    with pytest.raises(ValueError, match="how='median'"):
        ensemble_rewards(np.zeros((2, 2)), "median")
