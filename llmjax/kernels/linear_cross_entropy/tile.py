"""What kernels compute from a tile of logits; the vocabulary may be along either axis."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from llmjax.kernels.linear_cross_entropy.statistics import Statistics, Wanted
from llmjax.kernels.tiling import LOWEST


class Running(NamedTuple):
    """Running statistics, float32, of length 1 along the vocabulary; None if not requested.

    Attributes:
        highest: the largest logit.
        power: Σ exp(l - highest).
        target: the target's logit.
        total: Σ l.
        expected: Σ exp(l - highest) · l.
    """

    highest: Any
    power: Any
    target: Any
    total: Any = None
    expected: Any = None

    def statistics(self) -> Statistics:
        """The final statistics, after all tiles."""
        expected = None if self.expected is None else self.expected / self.power
        return Statistics(self.highest + jnp.log(self.power), self.target, self.total, expected)


def start(shape: tuple[int, int], wanted: Wanted) -> Running:
    """The running statistics before the first tile."""
    zeros = jnp.zeros(shape)
    return Running(
        jnp.full(shape, LOWEST),
        zeros,
        zeros,
        zeros if wanted.total else None,
        zeros if wanted.expected else None,
    )


class Tile(NamedTuple):
    """The logits of a block of tokens and a block of the vocabulary.

    Attributes:
        values: float32, after the cap.
        slope: derivative of the cap.
        hits: whether an entry is its token's target.
        inside: whether an entry belongs to the tile; None if all do.
        axis: the axis of the vocabulary.
    """

    values: jax.Array
    slope: jax.Array | float
    hits: jax.Array
    inside: jax.Array | None
    axis: int

    def fold(self, past: Running) -> Running:
        """The running statistics including this tile."""
        values = self._there(self.values, LOWEST)
        highest = jnp.maximum(past.highest, jnp.max(values, axis=self.axis, keepdims=True))
        powers, shrink = jnp.exp(values - highest), jnp.exp(past.highest - highest)
        total, expected = past.total, past.expected
        if total is not None:
            total = total + self._sum(self._there(values))
        if expected is not None:
            expected = expected * shrink + self._sum(powers * values)
        return Running(
            highest,
            past.power * shrink + self._sum(powers),
            past.target + self._sum(jnp.where(self.hits, values, 0.0)),
            total,
            expected,
        )

    def gradient(self, slopes: list, wanted: Wanted) -> jax.Array:
        """The gradient of the logits before the cap, float32; see `statistics`.

        Args:
            slopes: for every token, the log-sum-exp and the fields of `Slopes` that are not None.
            wanted: determines which fields these are.
        """
        log_sum, softmax, target, *rest = slopes
        every = rest.pop(0) if wanted.total else 0.0
        if wanted.expected:
            softmax = softmax + rest.pop(0) * self.values
        grad = jnp.exp(self.values - log_sum) * softmax + jnp.where(self.hits, target, 0.0) + every
        return self._there(grad * self.slope)

    def _there(self, x, other=0.0):
        """x where an entry belongs to the tile, else `other`."""
        return x if self.inside is None else jnp.where(self.inside, x, other)

    def _sum(self, x):
        return jnp.sum(x, axis=self.axis, keepdims=True)
