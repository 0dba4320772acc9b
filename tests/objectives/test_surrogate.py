"""Clipping by hand: which tokens gain, which have a gradient, and what each costs."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from llmjax.objectives import PolicyConfig
from llmjax.objectives.surrogate import clipped_surrogate, clipped_value_loss

BOUNDS = PolicyConfig(clip_low=0.2, clip_high=0.3, dual_clip=3.0)

# ratio, advantage: objective, its slope by the ratio, and why that is 0.
TABLE = {
    (1.0, 2.0): (2.0, 2.0, ""),
    (1.25, 2.0): (2.5, 2.0, ""),
    (1.5, 2.0): (2.6, 0.0, "high"),
    (0.5, 2.0): (1.0, 2.0, ""),  # it has become unlikely, and should not
    (1.0, -2.0): (-2.0, -2.0, ""),
    (0.9, -2.0): (-1.8, -2.0, ""),
    (0.5, -2.0): (-1.6, 0.0, "low"),
    (1.5, -2.0): (-3.0, -2.0, ""),
    (4.0, -2.0): (-6.0, 0.0, "dual"),
    (4.0, 2.0): (2.6, 0.0, "high"),
    (0.7, 0.0): (0.0, 0.0, ""),
}


def test_the_clipped_surrogate_of_a_table():
    ratios, advantages = np.array(list(TABLE)).T
    objectives, slopes, reasons = zip(*TABLE.values(), strict=True)
    with jax.enable_x64(True):
        found = clipped_surrogate(np.log(ratios), advantages, BOUNDS)
        by_log = jax.grad(lambda x: clipped_surrogate(x, advantages, BOUNDS).losses.sum())
        grads = by_log(np.log(ratios)) / ratios
    np.testing.assert_allclose(found.losses, -np.array(objectives), rtol=1e-12)
    np.testing.assert_allclose(grads, -np.array(slopes), rtol=1e-12, atol=1e-12)
    for name in ("low", "high", "dual"):
        assert list(getattr(found, name)) == [reason == name for reason in reasons]


def test_without_a_dual_clip_costs_have_no_bound():
    found = clipped_surrogate(jnp.log(jnp.array([4.0])), jnp.array([-2.0]), PolicyConfig())
    np.testing.assert_allclose(found.losses, [8.0], rtol=1e-6)
    assert not found.dual.any()


def test_ratios_beyond_all_numbers_are_finite():
    def total(log_ratios):
        return clipped_surrogate(log_ratios, jnp.array([1.0, -1.0, 1.0]), PolicyConfig()).losses

    log_ratios = jnp.array([1e4, 1e4, -1e4])
    assert np.isfinite(total(log_ratios)).all()
    assert np.isfinite(jax.jacobian(total)(log_ratios)).all()


# value, old value, return: loss, slope by the value, whether the bound won.
VALUES = {
    (1.0, 1.0, 3.0): (2.0, -2.0, False),
    (1.4, 1.0, 3.0): (1.28, -1.6, False),
    (2.0, 1.0, 3.0): (1.125, 0.0, True),  # towards the return, further than 0.5
    (0.0, 1.0, 3.0): (4.5, -3.0, False),  # away from it
}


def test_the_clipped_value_loss_of_a_table():
    values, old, returns = np.array(list(VALUES)).T
    losses, slopes, clipped = zip(*VALUES.values(), strict=True)
    with jax.enable_x64(True):
        found, won = clipped_value_loss(values, old, returns, 0.5)
        grads = jax.grad(lambda x: clipped_value_loss(x, old, returns, 0.5)[0].sum())(values)
        free, _ = clipped_value_loss(values, None, returns, 0.0)
    np.testing.assert_allclose(found, losses, rtol=1e-12)
    np.testing.assert_allclose(grads, slopes, atol=1e-12)
    assert list(won) == list(clipped)
    np.testing.assert_allclose(free, 0.5 * (values - returns) ** 2, rtol=1e-12)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"ratio": "batch"}, "policy.ratio='batch'"),
        ({"kl": "k4"}, "policy.kl='k4'"),
        ({"clip_low": 1.0}, "clip_low=1.0"),
        ({"clip_high": -0.1}, "clip_high=-0.1: must not be negative"),
        ({"dual_clip": 0.5}, "dual_clip=0.5: must be above 1"),
        ({"aggregation": "constant"}, "max_length=0 with aggregation=constant"),
        ({"max_length": 8}, "max_length=8 with aggregation=token"),
        ({"temperature": 0.0}, "temperature=0.0: must be above 0"),
        ({"kl": "k1", "kl_coefficient": 0.1}, "policy.kl=k1 with kl_coefficient=0.1: as a loss"),
    ],
)
def test_settings_that_mean_nothing_are_refused(fields, message):
    with pytest.raises(ValueError, match=message):
        PolicyConfig(**fields)
