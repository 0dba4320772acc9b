"""Learning rates against closed forms, and against optax where it has the whole schedule."""

import jax
import numpy as np
import optax
import pytest

from llmjax.optim import OptimizerConfig, schedule

PEAK, WARMUP, STEPS, SHARE = 0.2, 10, 100, 0.1


def rates(name, steps=STEPS, **changes):
    """The rate at steps 0 … `steps`, both ends included."""
    settings = {"learning_rate": PEAK, "warmup_steps": WARMUP, "final_share": SHARE} | changes
    rate = jax.jit(jax.vmap(schedule(OptimizerConfig(schedule=name, **settings), steps)))
    return np.asarray(rate(np.arange(steps + 1)))


def line(step, start, stop, first, last):
    """From `first` at step `start` to `last` at `stop`, constant before and after."""
    return np.interp(step, [start, stop], [first, last])


NOW = np.arange(STEPS + 1)
RISE = np.minimum(NOW / WARMUP, 1.0)
CLOSED_FORMS = {
    "constant": PEAK * RISE,
    "linear": RISE * line(NOW, WARMUP, STEPS, PEAK, PEAK * SHARE),
    "cosine": PEAK
    * RISE
    * (SHARE + (1 - SHARE) * (1 + np.cos(np.pi * line(NOW, WARMUP, STEPS, 0, 1))) / 2),
    # The decay takes a fifth of the run.
    "wsd": RISE * line(NOW, 80, STEPS, PEAK, PEAK * SHARE),
    "inverse_sqrt": PEAK * np.minimum(NOW / WARMUP, np.sqrt(WARMUP / np.maximum(NOW, 1e-9))),
}


@pytest.mark.parametrize("name", CLOSED_FORMS)
def test_closed_forms(name):
    np.testing.assert_allclose(rates(name), CLOSED_FORMS[name], rtol=1e-5, atol=1e-8)


def test_cosine_is_optaxs():
    theirs = optax.warmup_cosine_decay_schedule(0.0, PEAK, WARMUP, STEPS, PEAK * SHARE)
    np.testing.assert_allclose(rates("cosine"), [theirs(step) for step in NOW], rtol=1e-5)


@pytest.mark.parametrize("name", CLOSED_FORMS)
def test_ends(name):
    """0, the peak where the warm-up ends, and the final share; never above the peak."""
    rate = rates(name)
    assert rate[0] == 0.0
    np.testing.assert_allclose(rate[WARMUP], PEAK, rtol=1e-6)
    assert rate.max() <= PEAK * (1 + 1e-6)
    last = {"constant": PEAK, "inverse_sqrt": PEAK * (WARMUP / STEPS) ** 0.5}
    np.testing.assert_allclose(rate[-1], last.get(name, PEAK * SHARE), rtol=1e-5)


@pytest.mark.parametrize("name", ["constant", "linear", "cosine", "wsd"])
def test_without_warmup_the_first_step_has_the_peak(name):
    np.testing.assert_allclose(rates(name, warmup_steps=0)[0], PEAK, rtol=1e-6)


def test_wsd_decays_over_the_steps_it_is_told():
    rate = rates("wsd", decay_steps=5)
    np.testing.assert_allclose(rate[WARMUP:96], PEAK, rtol=1e-6)
    np.testing.assert_allclose(rate[95:], line(NOW[95:], 95, 100, PEAK, PEAK * SHARE), rtol=1e-5)


@pytest.mark.parametrize(
    ("name", "changes", "message"),
    [
        ("cosine", {"warmup_steps": 100}, "warmup_steps=100"),
        ("wsd", {"decay_steps": 95}, "decay_steps=95"),
        ("inverse_sqrt", {"warmup_steps": 0}, "warmup_steps of 1 or more"),
        ("cosine", {"decay_steps": 5}, "decay_steps=5 is for schedule=wsd, not cosine"),
    ],
)
def test_what_does_not_fit_into_the_run_is_named(name, changes, message):
    with pytest.raises(ValueError, match=message):
        rates(name, **changes)


@pytest.mark.parametrize(
    "change",
    [
        {"learning_rate": 0.0},
        {"learning_rate": float("nan")},
        {"learning_rate": float("inf")},
        {"epsilon": 0.0},
        {"warmup_steps": -1},
        {"weight_decay": -0.1},
        {"weight_decay": float("nan")},
        {"clip_norm": -1.0},
        {"clip_norm": float("nan")},
        {"beta1": 1.0},
        {"beta2": -0.1},
        {"momentum": 1.0},
        {"final_share": 1.5},
    ],
)
def test_config_names_the_field(change):
    with pytest.raises(ValueError, match=f"optimizer.{next(iter(change))}"):
        OptimizerConfig(**change)
