"""Reference implementation of disentangled attention, with all gathered positions in memory."""

import jax
import jax.numpy as jnp


def attention(query, key, value, rows, mask, c2p, p2c, scale) -> jax.Array:
    """Computes `api.disentangled_attention`."""
    length = query.shape[2]
    wide = jnp.promote_types(query.dtype, jnp.float32)
    at = jnp.arange(length)
    index = jnp.asarray(rows)[length - 1 - at[:, None] + at]  # the row of i - j
    scores = jnp.einsum("bhsc,bhtc->bhst", query, key).astype(wide)
    if c2p is not None:
        scores += jnp.einsum("bhsc,hstc->bhst", query, c2p[:, index])
    if p2c is not None:
        scores += jnp.einsum("bhtc,hstc->bhst", key, p2c[:, index])
    allowed = mask.allowed(0, length, length)
    allowed = jnp.ones((1, 1, 1), bool) if allowed is None else allowed
    weights = jax.nn.softmax(scores * scale, axis=-1, where=allowed[:, None])
    weights = jnp.where(jnp.any(allowed, axis=-1)[:, None, :, None], weights, 0.0)
    return jnp.einsum("bhst,bhtc->bhsc", weights.astype(value.dtype), value)
