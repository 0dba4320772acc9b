"""Disentangled attention with the weights of all pairs in memory.

Queries and keys are multiplied by the positions in order of distance, and the rows of the product
are shifted into place: no S×S gather is needed, nor a scatter in the backward pass.
"""

import jax
import jax.numpy as jnp

from llmjax import mesh
from llmjax.kernels import dropout
from llmjax.kernels.disentangled_attention.tables import Tables

MAX_BLOCKS = 8
MIN_BLOCK = 128
SCORES = ("batch", "heads", None, None)  # logical axes of [B, H, n, m]


def attention(query, key, value, mask, draw, tables: Tables, scale, rate) -> jax.Array:
    """Computes `api.disentangled_attention`."""
    # The terms are added in float32, whatever precision they are computed in.
    wide = jnp.promote_types(query.dtype, jnp.float32)
    scores = jnp.einsum("bhsc,bhtc->bhst", query, key).astype(wide)
    if tables.c2p is not None:
        scores += _all_by_distance(query, tables.c2p).astype(wide)
    if tables.p2c is not None:
        scores += jnp.swapaxes(_all_by_distance(key, tables.p2c), 2, 3).astype(wide)
    scores = scores * scale
    length = query.shape[2]
    allowed = mask.allowed(0, length, length)
    if allowed is None:
        weights = jax.nn.softmax(scores, axis=-1)
    else:
        # A finite floor avoids NaN in rows that see nothing, in the gradient too.
        scores = jnp.where(allowed[:, None], scores, jnp.finfo(scores.dtype).min)
        weights = jnp.where(allowed[:, None], jax.nn.softmax(scores, axis=-1), 0.0)
    if rate:
        at, heads = jnp.arange(length), draw.heads[..., None, None]
        keep = dropout.survives(draw.seeds, heads, at[:, None], at, rate)
        weights = jnp.where(keep, weights / (1.0 - rate), 0.0)
    return jnp.einsum("bhst,bhtc->bhsc", weights.astype(value.dtype), value)


def _all_by_distance(states: jax.Array, table: jax.Array) -> jax.Array:
    """states_i · table[distance of i and j] for all pairs (i, j), [B, H, S, S].

    A block of n rows computes n - 1 extra columns: fewer blocks waste more work, more blocks take
    longer to compile.
    """
    length = states.shape[2]
    blocks = [
        _by_distance(states[:, :, start:stop], table[:, length - stop : 2 * length - 1 - start])
        for start, stop in _blocks(length)
    ]
    return blocks[0] if len(blocks) == 1 else jnp.concatenate(blocks, axis=2)


def _blocks(length: int) -> list[tuple[int, int]]:
    size = max(MIN_BLOCK, -(-length // MAX_BLOCKS))
    return [(start, min(start + size, length)) for start in range(0, length, size)]


def _by_distance(states: jax.Array, positions: jax.Array) -> jax.Array:
    """states_i · positions_(n - 1 - i + j): [B, H, n, C], [H, n + m - 1, C] to [B, H, n, m]."""
    scores = jnp.einsum("bhsc,hpc->bhsp", states, positions.astype(states.dtype))
    return _slide(scores)


def _slide(scores: jax.Array) -> jax.Array:
    """[B, H, n, n + m - 1] to [B, H, n, m]: row i of the result starts at column n - 1 - i.

    In memory, these starts are n + m - 2 elements apart, one less than the row length, so it
    suffices to reshape to rows of that length (the shift of Dai et al. 2019, appendix B).
    """
    batch, heads, count, columns = scores.shape
    if count == 1:
        return scores
    length = columns - count + 1
    flat = mesh.sharded(jnp.reshape, SCORES[:3])(scores, (batch, heads, count * columns))
    flat = flat[:, :, count - 1 : count - 1 + count * (columns - 1)]
    shape = (batch, heads, count, columns - 1)
    return mesh.sharded(jnp.reshape, SCORES)(flat, shape)[..., :length]
