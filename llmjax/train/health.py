"""Tells a bad step from a good one, on the device: not finite, or far above the steps before.

A loss or gradient that jumps can undo days of training, and a host that looks at it looks too late:
the next step is under way. So the running mean and variance of both belong to the train state, and
the step itself decides (the rule of OLMo 2's optimizer: skip what is more than six standard
deviations above the mean of the last 128 steps).
"""

import dataclasses

import jax
import jax.numpy as jnp
from flax import struct

# A loss that hardly varies is no reason to skip one that is a hair above.
_LEAST_DEVIATION = 0.01


@dataclasses.dataclass(frozen=True)
class SpikeConfig:
    """Which steps are skipped because they stand out.

    Attributes:
        sigma: standard deviations above the running mean from which on a step's loss or gradient
            norm is a spike, and the step is skipped; 0 skips none.
        window: steps that mean and variance look back; the first so many are never a spike.
    """

    sigma: float = 6.0
    window: int = 128

    def __post_init__(self) -> None:
        if not self.sigma >= 0:
            raise ValueError(f"sigma={self.sigma}: a number of standard deviations, or 0 for none")
        if self.window < 2:
            raise ValueError(f"window={self.window}: a variance takes 2 steps or more")


@struct.dataclass
class Health:
    """What is remembered of the steps so far.

    Attributes:
        mean: float32 [2], the running means of loss and gradient norm.
        variance: float32 [2], their running variances.
        steps: int32, steps that these have seen.
        skipped: int32, steps skipped since the run began, whatever the reason.
        in_a_row: int32, of these the last ones without a good step between.
    """

    mean: jax.Array
    variance: jax.Array
    steps: jax.Array
    skipped: jax.Array
    in_a_row: jax.Array

    @classmethod
    def new(cls) -> "Health":
        """That of a run before its first step."""
        # One array each: a step gives every buffer away, and none twice.
        zeros = [jnp.zeros(shape, jnp.float32) for shape in (2, 2)]
        return cls(*zeros, *(jnp.zeros((), jnp.int32) for _ in range(3)))


def judge(
    health: Health, config: SpikeConfig | None, loss: jax.Array, norm: jax.Array, usable: jax.Array
) -> tuple[jax.Array, Health]:
    """Whether a step is a spike, and what to remember after it.

    A spike enters mean and variance as if it lay at the limit: one changes little, while a level
    that has risen for good is soon no spike any more.

    Args:
        health: before the step.
        config: the limit, or None for none.
        loss: float32 scalar.
        norm: float32 scalar, the gradient's norm before clipping.
        usable: bool scalar, whether both are finite and the batch had a target.
    """
    seen, mean, variance = jnp.stack([loss, norm]), health.mean, health.variance
    spike = jnp.zeros((), bool)
    window = config.window if config else SpikeConfig.window
    if config and config.sigma:
        least = _LEAST_DEVIATION * jnp.abs(mean)
        limit = mean + config.sigma * jnp.maximum(jnp.sqrt(variance), least)
        ready = health.steps >= window
        spike = usable & ready & jnp.any(seen > limit)
        seen = jnp.where(ready, jnp.minimum(seen, limit), seen)
    share = jnp.maximum(1.0 / (health.steps + 1.0), 1.0 / window)
    change = seen - mean
    skip = ~usable | spike
    return spike, Health(
        mean=jnp.where(usable, mean + share * change, mean),
        variance=jnp.where(usable, (1 - share) * (variance + share * change**2), variance),
        steps=health.steps + usable,
        skipped=health.skipped + skip,
        in_a_row=jnp.where(skip, health.in_a_row + 1, 0),
    )
