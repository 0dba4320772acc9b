"""Detects bad steps on the device: non-finite ones, and spikes far above the recent mean.

A spike in loss or gradient can undo days of training, and the host sees it too late, when the next
step is already running. So the train state holds the running mean and variance of both, and the
step itself decides (the rule of OLMo 2's optimizer: skip steps more than six standard deviations
above the mean of the last 128 steps).
"""

import dataclasses

import jax
import jax.numpy as jnp
from flax import struct

# Lower bound on the deviation, relative to the mean: a loss that hardly varies may rise a little.
_LEAST_DEVIATION = 0.01


@dataclasses.dataclass(frozen=True)
class SpikeConfig:
    """Which steps are skipped as spikes.

    Attributes:
        sigma: steps whose loss or gradient norm exceeds the running mean by this many standard
            deviations are skipped; 0 skips none.
        window: length of the running mean and variance, in steps; the first `window` steps are
            never spikes.
    """

    sigma: float = 6.0
    window: int = 128

    def __post_init__(self) -> None:
        if not self.sigma >= 0:
            raise ValueError(f"sigma={self.sigma}: must be 0 or more (0 skips none)")
        if self.window < 2:
            raise ValueError(f"window={self.window}: must be at least 2, for a variance")


@struct.dataclass
class Health:
    """Running statistics of the steps so far.

    Attributes:
        mean: float32 [2], the running means of loss and gradient norm.
        variance: float32 [2], their running variances.
        steps: int32, the number of steps in these statistics.
        skipped: int32, steps skipped since the run began, for any reason.
        in_a_row: int32, consecutive skipped steps up to now.
    """

    mean: jax.Array
    variance: jax.Array
    steps: jax.Array
    skipped: jax.Array
    in_a_row: jax.Array

    @classmethod
    def new(cls) -> "Health":
        """The statistics before the first step."""
        # Separate arrays, because a step donates every buffer, and none may be donated twice.
        zeros = [jnp.zeros(shape, jnp.float32) for shape in (2, 2)]
        return cls(*zeros, *(jnp.zeros((), jnp.int32) for _ in range(3)))


def judge(
    health: Health, config: SpikeConfig | None, loss: jax.Array, norm: jax.Array, usable: jax.Array
) -> tuple[jax.Array, Health]:
    """Decides whether a step is a spike, and updates the statistics.

    A spike enters the statistics clipped to the limit: a single one changes little, while a
    permanently higher level soon stops being a spike.

    Args:
        health: the statistics before the step.
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
