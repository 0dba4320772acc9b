"""Laws 9 and 10: no step compiles again, leaves NaN behind, or trains where no target is."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from llmjax import mesh, models, optim
from llmjax.objectives import Weighted, clm
from llmjax.train import init_state, make_step


@pytest.fixture(scope="module")
def setting(gpt2):
    spec = models.spec(gpt2)
    config = optim.OptimizerConfig(learning_rate=0.01, warmup_steps=2, weight_decay=0.5)
    return spec, optim.make(config, spec, 10)


@pytest.fixture(scope="module")
def step(gpt2, setting):
    """Token 63 makes the loss NaN, token 62 only its gradient."""

    def loss(params, batch, key):
        total, metrics = clm(gpt2)(params, batch, key)
        has = [jnp.any(batch["tokens"] == token) for token in (62, 63)]
        # The slope of a square root at 0 is infinite, and infinity times 0 is NaN.
        root = jnp.sqrt(jnp.where(has[0], 0.0, 1.0) * params["final_norm"]["scale"][0])
        bad_slope, bad_loss = jnp.where(has[0], root, 0.0), jnp.where(has[1], jnp.nan, 0.0)
        return Weighted(total.sum + bad_slope + bad_loss, total.weight), metrics

    return make_step(loss, setting[1])


def batch_with(packed, token):
    """The batch, with `token` for those that the loss above minds."""
    tokens = np.minimum(packed["tokens"], 61)
    if token is not None:
        tokens[0, 0] = token
    return packed | {"tokens": tokens}


def flat(state):
    """All numbers of a state but its step."""
    return jax.device_get(jax.tree.leaves((state.params, state.opt_state)))


@pytest.mark.parametrize("sizes", [None, (2, 2, 2)])
def test_no_later_step_compiles(sizes, step, setting, on_mesh, packed, compilations):
    counts = []
    with on_mesh(sizes):
        state = init_state(jax.random.key(0), *setting)
        for shift in range(3):
            rolled = {name: np.roll(rows, shift, 0) for name, rows in packed.items()}
            batch = mesh.shard_batch(batch_with(rolled, None))
            before = len(compilations)
            state, _ = step(state, batch)
            counts.append(len(compilations) - before)
    assert counts == [1, 0, 0]


@pytest.mark.parametrize("token", [62, 63])
def test_a_step_that_is_not_finite_is_skipped_and_says_so(token, step, setting, packed):
    good, bad = batch_with(packed, None), batch_with(packed, token)
    state, metrics = step(init_state(jax.random.key(0), *setting), good)
    assert metrics["skipped"] == 0
    before = flat(state)
    state, metrics = step(state, bad)
    assert (int(metrics["skipped"]), int(state.step)) == (1, 2)
    assert np.isfinite(metrics["loss"]) == (token == 62)
    assert np.isfinite(metrics["grad_norm"]) == (token == 63)
    for ours, theirs in zip(flat(state), before, strict=True):
        np.testing.assert_array_equal(ours, theirs)
    state, metrics = step(state, good)
    assert metrics["skipped"] == 0
    assert all(np.all(np.isfinite(leaf)) for leaf in flat(state))


def test_overflow_inside_the_model_is_skipped(step, setting, packed):
    state = init_state(jax.random.key(0), *setting)
    state.params["embedding"] = state.params["embedding"] * 1e30
    before = flat(state)
    state, metrics = step(state, batch_with(packed, None))
    assert metrics["skipped"] == 1
    for ours, theirs in zip(flat(state), before, strict=True):
        np.testing.assert_array_equal(ours, theirs)


def test_a_batch_without_targets_trains_nothing_and_says_so(step, setting, packed):
    """Not even weight decay or momentum move a parameter."""
    state, _ = step(init_state(jax.random.key(0), *setting), batch_with(packed, None))
    before = flat(state)
    empty = packed | {"targets": np.full_like(packed["targets"], -1)}
    state, metrics = step(state, batch_with(empty, None))
    assert (metrics["loss"], metrics["tokens"], metrics["skipped"]) == (0, 0, 1)
    for ours, theirs in zip(flat(state), before, strict=True):
        np.testing.assert_array_equal(ours, theirs)


def test_metrics_are_scalars_by_their_standard_names(step, setting, packed):
    state = init_state(jax.random.key(0), *setting)
    good = batch_with(packed, None)
    rates = []
    for _ in range(3):
        state, metrics = step(state, good)
        rates.append(float(metrics["learning_rate"]))
    names = {"loss", "tokens", "inputs", "grad_norm", "param_norm", "learning_rate", "skipped"}
    assert set(metrics) == names | {"spike", "skipped_total"}
    assert metrics["inputs"] == (packed["segment_ids"] != 0).sum()
    assert all(value.shape == () for value in metrics.values())
    np.testing.assert_allclose(rates, [0.0, 0.005, 0.01], rtol=1e-6)
    np.testing.assert_allclose(metrics["loss"], np.log(64), rtol=0.1)


def test_the_given_state_is_used_up(step, setting, packed):
    """Or two copies of everything would be in memory."""
    state = init_state(jax.random.key(0), *setting)
    step(state, batch_with(packed, None))
    assert all(leaf.is_deleted() for leaf in jax.tree.leaves(state.params))
