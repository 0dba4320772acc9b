"""Dropout masks from a hash of each element's place, independent of order and tiling."""

from typing import NamedTuple

import jax
import jax.numpy as jnp

SEEDS = 3


class Draw(NamedTuple):
    """The seeds and numbers that determine attention's dropout mask.

    Attributes:
        seeds: int32 [3], from `seeds`.
        heads: int32 [B, K], the number of each key head's first query head among those of all rows.
    """

    seeds: jax.Array
    heads: jax.Array

    def at(self, query: jax.Array | int, key: jax.Array | int) -> "Draw":
        """The draw for arrays that start at this query and this key of the whole."""
        first, second, start = self.seeds
        return self._replace(seeds=jnp.stack([first, second + _spread(key), start + query]))


def draw(
    key: jax.Array | None, rows: jax.Array | None, batch: int, kv_heads: int, groups: int
) -> Draw:
    """The `Draw` of a PRNG key.

    Args:
        key: the key; None gives zero seeds.
        rows: int32 [B], the number of each row in the whole batch; None means 0, 1, …
        batch: B.
        kv_heads: K.
        groups: query heads per key head.
    """
    rows = jnp.arange(batch, dtype=jnp.int32) if rows is None else rows
    heads = (rows[:, None] * kv_heads + jnp.arange(kv_heads, dtype=jnp.int32)) * groups
    return Draw(seeds(key), heads)


def seeds(key: jax.Array | None) -> jax.Array:
    """int32 [3]: two seeds from a PRNG key, or zeros, and the number of the first query, 0."""
    bits = jnp.zeros(2, jnp.uint32) if key is None else jax.random.bits(key, (2,), jnp.uint32)
    return jnp.append(jax.lax.bitcast_convert_type(bits, jnp.int32), jnp.int32(0))


def survives(seeds, head, query, key, rate: float) -> jax.Array:
    """Whether the weight of a pair is kept, with probability 1 - rate.

    For dropout of activations, pass their row, position and channel as head, query and key. The
    arguments are broadcast; for speed, leave out the axis of keys where it is not needed.

    Args:
        seeds: from `seeds`.
        head: int32, the query head's number among those of all rows.
        query: int32, the query's number.
        key: int32, the key's number.
        rate: the probability of dropping.
    """
    head, query, key = (jnp.asarray(number, jnp.int32) for number in (head, query, key))
    state = _mix(_mix(seeds[0] ^ head) ^ (seeds[2] + query))
    state = _mix(state ^ (seeds[1] + _spread(key)))
    return jax.lax.shift_right_logical(state, jnp.int32(8)) >= round(rate * 2**24)


def _spread(number: jax.Array | int) -> jax.Array:
    """A linear hash: a multiple whose bits differ widely for adjacent numbers."""
    return jnp.asarray(number, jnp.int32) * jnp.int32(-1640531527)


def _mix(x: jax.Array) -> jax.Array:
    """A bijection in which every bit of x flips about half of the bits (C. Wellons' lowbias32)."""
    for shift, factor in ((16, 0x7FEB352D), (15, -0x7B935975)):
        x = (x ^ jax.lax.shift_right_logical(x, jnp.int32(shift))) * jnp.int32(factor)
    return x ^ jax.lax.shift_right_logical(x, jnp.int32(16))
