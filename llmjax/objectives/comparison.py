"""Rows that compare K responses, as segments 1 to K, best first.

Each segment is the prompt followed by a response. So splitting a batch never separates responses
that are compared, and padding may be on either side.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from llmjax.objectives.loss import Batch


class Pairs(NamedTuple):
    """The pairs of responses of each row, the better one first.

    Attributes:
        there: bool [B, K, K], whether the row has both and the first is the better one.
        rows: bool [B], whether the row has a pair.
    """

    there: jax.Array
    rows: jax.Array

    @classmethod
    def of(cls, present: jax.Array) -> "Pairs":
        """The pairs of rows that have these responses, bool [B, K]."""
        count = present.shape[1]
        better = jnp.triu(jnp.ones((count, count), bool), 1)
        there = present[:, :, None] & present[:, None] & better
        return cls(there, jnp.any(there, axis=(1, 2)))

    def mean(self, values: jax.Array) -> jax.Array:
        """The sum over rows of the mean over a row's pairs, of values [B, K, K], a scalar."""
        counts = jnp.maximum(jnp.sum(self.there, axis=(1, 2), dtype=values.dtype), 1.0)
        sums = jnp.sum(jnp.where(self.there, values, 0.0), axis=(1, 2))
        return jnp.sum(sums / counts)

    def metrics(self, scores: jax.Array) -> dict[str, jax.Array]:
        """Metrics of the pairs under scores [B, K], as sums over rows.

        "accuracy" (pairs in which the better one has the higher score; a tie counts half),
        "margin" (the difference), "chosen" and "rejected" (the scores).
        """
        difference = differences(scores)
        right = jnp.where(difference == 0, 0.5, difference > 0)
        chosen = jnp.broadcast_to(scores[:, :, None], difference.shape)
        rejected = jnp.broadcast_to(scores[:, None], difference.shape)
        found = {
            "accuracy": right,
            "margin": difference,
            "chosen": chosen,
            "rejected": rejected,
        }
        return {name: self.mean(values) for name, values in found.items()}


def differences(scores: jax.Array) -> jax.Array:
    """Pairwise differences of scores [B, K], first minus second: [B, K, K]."""
    return scores[:, :, None] - scores[:, None]


def require_segments(name: str, batch: Batch, responses: int) -> jax.Array:
    """The batch's segment ids.

    Raises:
        ValueError: the batch has none, or there are fewer than two responses.
    """
    if responses < 2:
        raise ValueError(f"{name}: responses={responses} cannot be compared; give at least 2")
    if "segment_ids" not in batch:
        raise ValueError(
            f'{name}: the batch has no "segment_ids" [B, S]; they assign tokens to responses, 1 to '
            f"{responses}, best first"
        )
    return jnp.asarray(batch["segment_ids"])
