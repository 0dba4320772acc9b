"""Sums over the segments of rows, and broadcasting them back to tokens."""

import jax
import jax.numpy as jnp

from llmjax import lookup, mesh


def segment_sums(values: jax.Array, segment_ids: jax.Array, count: int) -> jax.Array:
    """The sum over each segment of each row, [B, K]: segment k + 1 at index k, 0 if absent.

    Args:
        values: [B, S].
        segment_ids: int32 [B, S]: 1 to K; tokens with other ids, such as 0, are ignored.
        count: K. S is enough for any row.
    """
    values, segment_ids = _whole_rows(values, segment_ids)
    (start,) = _whole_rows(jnp.zeros((values.shape[0], count + 1), values.dtype))

    def one(sums, segment_ids, values):
        return sums.at[segment_ids].add(values, mode="drop")

    return mesh.place(jax.vmap(one)(start, segment_ids, values)[:, 1:], ("batch", None))


def at_tokens(sums: jax.Array, segment_ids: jax.Array) -> jax.Array:
    """The value of each token's segment, [B, S]; 0 at padding.

    Args:
        sums: [B, K], as from `segment_sums`.
        segment_ids: int32 [B, S], at most K.
    """
    (segment_ids,) = _whole_rows(segment_ids)
    found = lookup.gather_positions(sums, jnp.maximum(segment_ids - 1, 0))
    return mesh.place(jnp.where(segment_ids > 0, found, 0), ("batch", "sequence"))


def _whole_rows(*arrays: jax.Array) -> list[jax.Array]:
    """Gathers whole rows on each device: rows are a batch dimension of every look-up here."""
    return [mesh.place(jnp.asarray(array), ("batch", None)) for array in arrays]
