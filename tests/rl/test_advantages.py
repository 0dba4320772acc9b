"""Advantages by their definitions: sums over all later actions, one by one, in float64."""

import math

import jax
import numpy as np
import pytest

from llmjax import mesh
from llmjax.rl import discounted_returns, gae, group_advantages, informative, whiten

B, S = 8, 12


@pytest.fixture(scope="module")
def rollouts():
    """Rows of one or two responses with prompts, a gap between actions, and padding on any side."""
    random = np.random.RandomState(0)
    segment_ids, actions = np.zeros((B, S), np.int32), np.zeros((B, S), bool)
    for row in range(B - 1):
        start, stop = row % 3, S - row % 4
        middle = random.randint(start + 3, stop - 3) if row % 2 else stop
        segment_ids[row, start:middle], segment_ids[row, middle:stop] = 1, 2
        for begin, end in ((start, middle), (middle, stop)):
            actions[row, begin + 1 : end] = True
        actions[row, start + 2] = row % 3 != 0
    return {
        "rewards": random.normal(size=(B, S)),
        "values": random.normal(size=(B, S)),
        "actions": actions,
        "segment_ids": segment_ids,
    }


def responses(rollouts):
    """The places of each response's actions, in order."""
    for row, segments in enumerate(rollouts["segment_ids"]):
        for segment in (1, 2):
            places = np.flatnonzero((segments == segment) & rollouts["actions"][row])
            if len(places):
                yield row, places


def by_hand(rollouts, discount, decay):
    """A_t = Σ_k (γλ)^k δ_{t+k}, each sum on its own."""
    found = np.zeros((B, S))
    for row, places in responses(rollouts):
        rewards, values = (rollouts[name][row, places] for name in ("rewards", "values"))
        after = [*values[1:], 0.0]
        deltas = [r + discount * v2 - v for r, v, v2 in zip(rewards, values, after, strict=True)]
        for t, place in enumerate(places):
            found[row, place] = sum(
                (discount * decay) ** k * delta for k, delta in enumerate(deltas[t:])
            )
    return found


@pytest.mark.parametrize(("discount", "decay"), [(1.0, 0.95), (0.9, 0.7), (0.99, 0.0), (0.8, 1.0)])
def test_gae_is_its_definition(discount, decay, rollouts):
    with jax.enable_x64(True):
        advantages, returns = gae(**rollouts, discount=discount, decay=decay)
    expected = by_hand(rollouts, discount, decay)
    np.testing.assert_allclose(advantages, expected, rtol=1e-12, atol=1e-12)
    values = np.where(rollouts["actions"], rollouts["values"], 0.0)
    np.testing.assert_allclose(returns, expected + values, rtol=1e-12, atol=1e-12)


def test_what_is_no_action_is_not_read(rollouts):
    noise = {
        name: np.where(rollouts["actions"], rollouts[name], 1e9) for name in ("rewards", "values")
    }
    with jax.enable_x64(True):
        jax.tree.map(np.testing.assert_array_equal, gae(**rollouts), gae(**rollouts | noise))


def test_returns_are_discounted_sums(rollouts):
    """And GAE with λ = 1 is them, less the value."""
    with jax.enable_x64(True):
        rest = {name: rollouts[name] for name in ("rewards", "actions", "segment_ids")}
        found = discounted_returns(**rest, discount=0.9)
        _, returns = gae(**rollouts, discount=0.9, decay=1.0)
    expected = np.zeros((B, S))
    for row, places in responses(rollouts):
        rewards = rollouts["rewards"][row, places]
        for t, place in enumerate(places):
            expected[row, place] = sum(0.9**k * r for k, r in enumerate(rewards[t:]))
    np.testing.assert_allclose(found, expected, rtol=1e-12, atol=1e-12)
    np.testing.assert_allclose(returns, expected, rtol=1e-12, atol=1e-12)


def test_devices_that_share_rows_and_sequences_give_the_same(rollouts):
    """Whitening over all of them, too."""
    narrow = {name: x.astype(np.float32) if x.dtype == float else x for name, x in rollouts.items()}

    @jax.jit
    def both(batch):
        advantages, returns = gae(**batch)
        return whiten(advantages, batch["actions"]), returns

    with jax.set_mesh(mesh.make_mesh(mesh.MeshConfig(data=2, fsdp=2, context=2))):
        found = jax.device_get(both(mesh.shard_batch(narrow)))
    values = [by_hand(rollouts, 1.0, 0.95)[row, at] for row, at in responses(rollouts)]
    flat = np.concatenate(values)
    expected = np.zeros((B, S))
    for row, places in responses(rollouts):
        expected[row, places] = by_hand(rollouts, 1.0, 0.95)[row, places] - flat.mean()
    np.testing.assert_allclose(found[0], expected / flat.std(), rtol=1e-4, atol=1e-5)


def test_whitening_over_actions(rollouts):
    values, actions = rollouts["values"], rollouts["actions"]
    with jax.enable_x64(True):
        white, shifted = whiten(values, actions), whiten(values, actions, center=False)
    chosen = np.asarray(white)[actions]
    assert chosen.mean() == pytest.approx(0, abs=1e-12)
    assert chosen.std() == pytest.approx(1, rel=1e-5)
    assert np.asarray(shifted)[actions].mean() == pytest.approx(values[actions].mean())
    assert not np.any(np.asarray(white)[~actions]) and not np.any(np.asarray(shifted)[~actions])


@pytest.mark.parametrize("value", [0.1, -7.3, 100.1])
@pytest.mark.parametrize("count", [3, 8, 10])
def test_equal_values_teach_nothing(value, count):
    """No rounding error of a mean is taken for a difference: 100.1 eight times gave 0.83."""
    values = np.full((2, count), value, np.float32)
    for kind in ("grpo", "dr_grpo", "rloo"):
        np.testing.assert_array_equal(group_advantages(values, kind), 0)
    actions = np.arange(count) < [[count], [2]]
    np.testing.assert_array_equal(whiten(values, actions), 0)
    kept = whiten(values, actions, center=False)
    np.testing.assert_array_equal(kept, np.where(actions, values, 0))


GROUPS = np.array([[1.0, 0.0, 0.0, 1.0], [0.0, 0.0, 4.0, 0.0], [2.0, 2.0, 2.0, 2.0]])


def test_group_advantages_one_response_at_a_time():
    expected = {kind: np.zeros((3, 4)) for kind in ("grpo", "dr_grpo", "rloo")}
    for g, group in enumerate(GROUPS):
        mean = sum(group) / 4
        deviation = math.sqrt(sum((r - mean) ** 2 for r in group) / 3)
        for i, reward in enumerate(group):
            others = [r for j, r in enumerate(group) if j != i]
            expected["grpo"][g, i] = (reward - mean) / (deviation + 1e-6)
            expected["dr_grpo"][g, i] = reward - mean
            expected["rloo"][g, i] = reward - sum(others) / 3
    for kind, values in expected.items():
        np.testing.assert_allclose(group_advantages(GROUPS, kind), values, rtol=1e-5, atol=1e-6)
    assert list(informative(GROUPS)) == [True, True, False]
    assert not np.any(group_advantages(GROUPS)[2])


def test_bad_groups_are_refused():
    with pytest.raises(ValueError, match="1 response per prompt cannot be compared"):
        group_advantages(np.zeros((3, 1)))
    with pytest.raises(ValueError, match="kind='ppo'"):
        group_advantages(GROUPS, "ppo")
