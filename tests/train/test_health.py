"""Spikes are skipped on the device, by statistics that are numpy's, and counted."""

import dataclasses
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from llmjax.objectives import Weighted
from llmjax.train import make_step
from llmjax.train.health import Health, SpikeConfig, judge
from llmjax.train.state import TrainState


def course(config: SpikeConfig | None, losses, norms=None, usable=None):
    """Which steps of a run are spikes, and what is remembered at its end."""
    count = len(losses)
    norms = np.ones(count) if norms is None else norms
    usable = np.ones(count, bool) if usable is None else np.asarray(usable)

    def body(health, seen):
        spike, health = judge(health, config, *seen)
        return health, spike

    seen = (jnp.float32(losses), jnp.float32(norms), jnp.asarray(usable))
    health, spikes = jax.jit(lambda seen: jax.lax.scan(body, Health.new(), seen))(seen)
    return np.asarray(spikes), health


def test_mean_and_variance_are_those_of_all_steps_within_the_window():
    losses = np.random.RandomState(0).normal(3.0, 0.2, 50)
    norms = np.random.RandomState(1).gamma(4.0, 0.5, 50)
    spikes, health = course(SpikeConfig(window=50), losses, norms)
    assert not any(spikes)
    np.testing.assert_allclose(health.mean, [losses.mean(), norms.mean()], rtol=1e-5)
    np.testing.assert_allclose(health.variance, [losses.var(), norms.var()], rtol=1e-4)
    assert int(health.steps) == 50


def test_normal_steps_are_no_spikes_and_one_far_out_is():
    draw = np.random.RandomState(2)
    losses = draw.normal(3.0, 0.1, 3000)
    spikes, _ = course(SpikeConfig(window=100), losses)
    assert not any(spikes)  # six standard deviations: once in 10⁹
    for place, value in ((500, 4.0), (2000, 3.8)):
        losses[place] = value
    spikes, health = course(SpikeConfig(window=100), losses)
    assert np.flatnonzero(spikes).tolist() == [500, 2000]
    assert (int(health.skipped), int(health.in_a_row)) == (2, 0)
    spikes, _ = course(SpikeConfig(window=100), np.full(3000, 3.0), 1.0 + (losses - 3.0) / 2)
    assert np.flatnonzero(spikes).tolist() == [500, 2000]
    assert not any(course(SpikeConfig(sigma=0.0, window=100), losses)[0])
    assert not any(course(None, losses)[0])


def test_a_falling_loss_is_never_a_spike_nor_a_level_that_rose_for_good():
    falling = 2.0 + 8.0 * np.exp(-np.arange(1000) / 100)
    assert not any(course(SpikeConfig(window=50), falling)[0])
    level = np.random.RandomState(3).normal(3.0, 0.1, 400)
    level[200:] += 1.0  # ten deviations up
    spikes, _ = course(SpikeConfig(window=50), level)
    assert 1 <= sum(spikes[200:]) <= 10
    assert not any(spikes[210:])


def test_a_hair_above_a_steady_loss_is_no_spike():
    losses = np.full(300, 3.0)
    losses[200], losses[250] = 3.1, 3.3
    assert np.flatnonzero(course(SpikeConfig(window=50), losses)[0]).tolist() == [250]


def test_steps_that_cannot_be_used_are_counted_and_teach_nothing():
    losses = [3.0, np.nan, np.inf, 3.0, 0.0]
    usable = [True, False, False, True, False]
    _, health = course(SpikeConfig(), losses, usable=usable)
    np.testing.assert_array_equal(health.mean, [3.0, 1.0])
    np.testing.assert_array_equal(health.variance, [0.0, 0.0])
    assert [int(x) for x in (health.steps, health.skipped, health.in_a_row)] == [2, 3, 1]


def test_a_step_skips_a_spike_and_says_so_without_asking_the_host():
    def loss(params, batch, key):
        return Weighted(jnp.sum(params["w"] ** 2 * batch["tokens"]), jnp.float32(1.0)), {}

    optimizer = optax.inject_hyperparams(optax.sgd)(learning_rate=1e-3)
    params = {"layers": {"mlp": {"up": jnp.ones(3)}}, "w": jnp.ones(2)}
    state = TrainState(jnp.int32(0), params, optimizer.init(params), jax.random.key(0))
    step = make_step(loss, optimizer, spikes=SpikeConfig(window=10), norms=True)
    told = []
    with jax.transfer_guard_device_to_host("disallow"):
        for number in range(20):
            size = 1000.0 if number == 15 else 1.0
            state, metrics = step(state, {"tokens": jnp.float32([size, size])})
            told.append((metrics, jnp.copy(state.params["w"])))
    spikes = [int(metrics["spike"]) for metrics, _ in told]
    assert spikes == [int(metrics["skipped"]) for metrics, _ in told]
    assert np.flatnonzero(spikes).tolist() == [15]
    assert [int(metrics["skipped_total"]) for metrics, _ in told] == [0] * 15 + [1] * 5
    ws = [np.asarray(w) for _, w in told]
    np.testing.assert_array_equal(ws[15], ws[14])
    assert all(np.all(a != b) for a, b in itertools.pairwise(ws[:15]))
    # Norms by group: gradient 2w in two places, update 1e-3 of it.
    np.testing.assert_allclose(told[0][0]["grad_norm/w"], np.sqrt(8), rtol=1e-6)
    np.testing.assert_allclose(told[0][0]["update_norm/w"], 1e-3 * np.sqrt(8), rtol=1e-6)
    assert told[0][0]["grad_norm/layers/mlp"] == 0


def test_bad_settings_are_named():
    for settings in ({"sigma": -1.0}, {"sigma": float("nan")}, {"window": 1}):
        with pytest.raises(ValueError, match=next(iter(settings))):
            SpikeConfig(**settings)
    assert dataclasses.asdict(SpikeConfig()) == {"sigma": 6.0, "window": 128}
