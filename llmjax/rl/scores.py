"""Scores of responses on a scale that stays: by statistics of all that were seen."""

import dataclasses

import jax
import jax.numpy as jnp
from flax import struct

from llmjax.checks import require_at_least


@dataclasses.dataclass(frozen=True)
class ScoreConfig:
    """What is done to scores before they become rewards, in this order.

    Attributes:
        center: whether the running mean is subtracted.
        scale: whether they are divided by the running standard deviation.
        clip: the largest magnitude that is left; 0 leaves all.
    """

    center: bool = False
    scale: bool = False
    clip: float = 0.0

    def __post_init__(self) -> None:
        require_at_least(0, self, "scores", ("clip",))


@struct.dataclass
class RunningMoments:
    """Of all numbers so far.

    Attributes:
        count: of them, float32 scalar.
        mean: of them.
        squares: Σ (x - mean)².
    """

    count: jax.Array
    mean: jax.Array
    squares: jax.Array

    @classmethod
    def new(cls) -> "RunningMoments":
        """Of none."""
        return cls(*(jnp.zeros(()) for _ in range(3)))

    def add(self, values: jax.Array) -> "RunningMoments":
        """Of these too (Chan et al. 1979, equation 2.1); the order of batches does not matter."""
        values = jnp.asarray(values)
        count = jnp.float32(values.size)
        mean = jnp.mean(values)
        squares = jnp.sum((values - mean) ** 2)
        total, apart = self.count + count, mean - self.mean
        return RunningMoments(
            total,
            self.mean + apart * count / total,
            self.squares + squares + apart**2 * self.count * count / total,
        )

    @property
    def deviation(self) -> jax.Array:
        """The standard deviation; 1 of fewer than two numbers, or of equal ones."""
        variance = self.squares / jnp.maximum(self.count - 1, 1.0)
        return jnp.sqrt(jnp.where(variance > 0, variance, 1.0))


def normalize_scores(
    scores: jax.Array, moments: RunningMoments, config: ScoreConfig
) -> tuple[jax.Array, RunningMoments]:
    """Scores as `config` says, by statistics that they are in themselves, and these statistics.

    Args:
        scores: of a batch, any shape with at least one number.
        moments: of the batches before.
        config: what is done.
    """
    scores, moments = jnp.asarray(scores), moments.add(scores)
    if config.center:
        scores = scores - moments.mean
    if config.scale:
        scores = scores / moments.deviation
    if config.clip:
        scores = jnp.clip(scores, -config.clip, config.clip)
    return scores, moments
