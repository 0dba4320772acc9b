"""Rows that compare responses: K of them, as segments 1 to K, best first.

Each response has its prompt in front. So no cut of a batch parts what is compared, and it does not
matter on which side padding is.
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
        """Those of rows that have these responses, bool [B, K]."""
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
        """What scores [B, K] say of the pairs, as sums over rows.

        "accuracy" (pairs in which the better one has the higher score; an equal one counts half),
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
    """Of the first's score and the second's, [B, K, K], of scores [B, K]."""
    return scores[:, :, None] - scores[:, None]


def require_segments(name: str, batch: Batch, responses: int) -> jax.Array:
    """The batch's segment ids; an error for one that has none, or for fewer than two responses."""
    if responses < 2:
        raise ValueError(f"{name}: responses={responses} cannot be compared; give at least 2")
    if "segment_ids" not in batch:
        raise ValueError(
            f'{name}: the batch has no "segment_ids" [B, S]; they say which tokens belong to which '
            f"response, 1 to {responses}, best first"
        )
    return jnp.asarray(batch["segment_ids"])
