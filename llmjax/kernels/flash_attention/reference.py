"""Reference implementation of attention, with the S×T weights in memory."""

import jax
import jax.numpy as jnp

from llmjax.kernels.flash_attention.mask import Mask


def attention(
    query, key, value, mask: Mask, scale: float, cap=0.0, keep=None, sinks=None
) -> tuple[jax.Array, jax.Array]:
    """softmax(q kᵀ · scale) v over the allowed pairs (Vaswani et al. 2017, equation 1).

    Shapes and results are as in `api.flash_attention_with_log_sum`. Queries that see no key give
    zero. `keep` [B, H, S, T], if given, multiplies the weights: a dropout mask, scaled up.
    """
    groups = query.shape[1] // key.shape[1]
    key, value = (jnp.repeat(x, groups, axis=1) for x in (key, value))
    wide = jnp.promote_types(query.dtype, jnp.float32)
    scores = jnp.einsum("bhsc,bhtc->bhst", query, key, preferred_element_type=wide) * scale
    scores = cap * jnp.tanh(scores / cap) if cap else scores
    allowed = mask.allowed(0, query.shape[2], key.shape[2])
    allowed = jnp.ones((1, 1, 1), bool) if allowed is None else allowed
    scores = jnp.where(allowed[:, None], scores, -jnp.inf)
    if sinks is not None:
        # An extra key with value zero that every query sees.
        column = jnp.broadcast_to(sinks[:, None, None], (*scores.shape[:3], 1))
        scores = jnp.concatenate([scores, column], axis=-1)
    seen = jnp.any(scores > -jnp.inf, axis=-1, keepdims=True)
    weights = jax.nn.softmax(scores, axis=-1, where=scores > -jnp.inf)
    weights = jnp.where(seen, weights, 0.0)[..., : key.shape[2]]
    weights = weights if keep is None else weights * keep
    out = jnp.einsum("bhst,bhtc->bhsc", weights.astype(value.dtype), value)
    return out, jax.nn.logsumexp(scores, axis=-1)
