"""Which attention weights survive: a hash of where they are, the same in any order and any tile."""

from typing import NamedTuple

import jax
import jax.numpy as jnp


class Draw(NamedTuple):
    """What decides which weights survive.

    Attributes:
        seeds: int32 [2].
        heads: int32 [B, K], the number of the first query head of each key head, among all rows'.
    """

    seeds: jax.Array
    heads: jax.Array


def draw(key: jax.Array | None, batch: int, kv_heads: int, groups: int) -> Draw:
    """From a PRNG key; without one, zeros."""
    bits = jnp.zeros(2, jnp.uint32) if key is None else jax.random.bits(key, (2,), jnp.uint32)
    heads = jnp.arange(batch * kv_heads, dtype=jnp.int32).reshape(batch, kv_heads) * groups
    return Draw(jax.lax.bitcast_convert_type(bits, jnp.int32), heads)


def survives(seeds, head, query, key, rate: float) -> jax.Array:
    """Whether the weight of a pair is kept, with probability 1 - rate.

    Args:
        seeds: the two of `Draw`.
        head: int32, the query head's number among all rows'.
        query: int32, the query's number.
        key: int32, the key's. All are broadcast against each other; what does not depend on keys
            is best given without an axis for them.
        rate: the share to drop.
    """
    head, query, key = (jnp.asarray(number, jnp.int32) for number in (head, query, key))
    state = _mix(_mix(seeds[0] ^ head) ^ query)
    state = _mix(state ^ (seeds[1] + key * jnp.int32(-1640531527)))
    return jax.lax.shift_right_logical(state, jnp.int32(8)) >= round(rate * 2**24)


def _mix(x: jax.Array) -> jax.Array:
    """A bijection in which every bit of x moves half of the bits (C. Wellons' lowbias32)."""
    for shift, factor in ((16, 0x7FEB352D), (15, -0x7B935975)):
        x = (x ^ jax.lax.shift_right_logical(x, jnp.int32(shift))) * jnp.int32(factor)
    return x ^ jax.lax.shift_right_logical(x, jnp.int32(16))
