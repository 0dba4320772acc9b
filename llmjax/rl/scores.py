"""Normalization of scores by running statistics."""

import dataclasses

import jax
import jax.numpy as jnp
from flax import struct

from llmjax.checks import require_at_least


@dataclasses.dataclass(frozen=True)
class ScoreConfig:
    """Normalization of scores before they become rewards, applied in this order.

    Attributes:
        center: whether the running mean is subtracted.
        scale: whether scores are divided by the running standard deviation.
        clip: clips scores to ±clip; 0 disables it.
    """

    center: bool = False
    scale: bool = False
    clip: float = 0.0

    def __post_init__(self) -> None:
        require_at_least(0, self, "scores", ("clip",))


@struct.dataclass
class RunningMoments:
    """Running moments of all numbers so far.

    Attributes:
        count: number of values, float32 scalar.
        mean: their mean.
        squares: Σ (x - mean)².
    """

    count: jax.Array
    mean: jax.Array
    squares: jax.Array

    @classmethod
    def new(cls) -> "RunningMoments":
        """The moments of no numbers."""
        return cls(*(jnp.zeros(()) for _ in range(3)))

    def add(self, values: jax.Array) -> "RunningMoments":
        """Adds values (Chan et al. 1979, equation 2.1); the order of batches does not matter."""
        values = jnp.ravel(values)
        count = jnp.float32(values.size)
        # Exact for equal values, whose deviation must be 0 rather than a rounding error.
        mean = values[0] + jnp.mean(values - values[0])
        squares = jnp.sum((values - mean) ** 2)
        total, apart = self.count + count, mean - self.mean
        share = count / total
        return RunningMoments(
            total,
            self.mean + apart * share,
            self.squares + squares + apart**2 * self.count * share,
        )

    @property
    def deviation(self) -> jax.Array:
        """The standard deviation; 1 for fewer than two numbers, or equal ones."""
        variance = self.squares / jnp.maximum(self.count - 1, 1.0)
        return jnp.sqrt(jnp.where(variance > 0, variance, 1.0))


def normalize_scores(
    scores: jax.Array, moments: RunningMoments, config: ScoreConfig
) -> tuple[jax.Array, RunningMoments]:
    """Normalizes scores by running moments that include them; returns both.

    Args:
        scores: scores of a batch, any shape with at least one number.
        moments: moments of the previous batches.
        config: normalization options.
    """
    scores, moments = jnp.asarray(scores), moments.add(scores)
    if config.center:
        scores = scores - moments.mean
    if config.scale:
        scores = scores / moments.deviation
    if config.clip:
        scores = jnp.clip(scores, -config.clip, config.clip)
    return scores, moments
