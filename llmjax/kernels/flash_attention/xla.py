"""Attention by blocks of queries in plain XLA, forward and backward.

Each block of queries sees only the keys that the mask can let through, so a causal mask costs
about half, and no S×T array outlives its block: the backward pass computes the weights again from
the log-sum-exp that the forward pass keeps (FlashAttention-2, Dao 2023, algorithms 1 and 2).
The query heads of a group are folded into the query axis, so every product is one batched matrix
multiplication and keys are never repeated.
"""

import functools

import jax
import jax.numpy as jnp

MAX_BLOCKS = 8  # more blocks skip more of the masked half; fewer make larger products
MIN_BLOCK = 128


def _blocks(length: int) -> list[tuple[int, int]]:
    """Cuts `length` queries into at most `MAX_BLOCKS` ranges of equal size but for the last."""
    size = max(MIN_BLOCK, -(-length // MAX_BLOCKS))
    return [(start, min(start + size, length)) for start in range(0, length, size)]


@functools.partial(jax.custom_vjp, nondiff_argnums=(5, 6))
def attention(query, key, value, mask, dropout_key, scale, rate) -> jax.Array:
    """As `api.flash_attention`."""
    return _forward(query, key, value, mask, dropout_key, scale, rate)[0]


def _forward(query, key, value, mask, dropout_key, scale, rate):
    outs, sums = [], []
    for start, stop in _blocks(query.shape[2]):
        keys = mask.key_stop(stop, key.shape[2])
        block = _fold(query[:, :, start:stop], key.shape[1])
        scores = _scores(block, key[:, :, :keys], mask, start, stop, scale)
        highest = jnp.max(scores, axis=-1, keepdims=True)
        # A row that sees nothing has only -inf: keep the subtraction finite, its weights are 0.
        highest = jnp.where(highest == -jnp.inf, 0.0, highest)
        weights = jnp.exp(scores - highest)
        total = jnp.sum(weights, axis=-1, keepdims=True)
        weights = _drop(weights, dropout_key, start, rate).astype(value.dtype)
        out = jnp.einsum("bknt,bktc->bknc", weights, value[:, :, :keys])
        out = out / jnp.where(total > 0, total, 1.0).astype(out.dtype)
        outs.append(_unfold(out, query.shape[1]))
        # The row that sees nothing gets +inf, for which the backward pass finds weights of 0.
        sums.append(jnp.where(total > 0, highest + jnp.log(total), jnp.inf))
    out = jnp.concatenate(outs, axis=2)
    return out, (query, key, value, mask, dropout_key, out, sums)


def _backward(scale, rate, residuals, grad):
    query, key, value, mask, dropout_key, out, sums = residuals
    grad_key, grad_value, grad_queries = jnp.zeros_like(key), jnp.zeros_like(value), []
    for (start, stop), log_sum in zip(_blocks(query.shape[2]), sums, strict=True):
        keys = mask.key_stop(stop, key.shape[2])
        block, block_out, block_grad = (
            _fold(x[:, :, start:stop], key.shape[1]) for x in (query, out, grad)
        )
        scores = _scores(block, key[:, :, :keys], mask, start, stop, scale)
        weights = jnp.exp(scores - log_sum)
        kept = _drop(weights, dropout_key, start, rate).astype(value.dtype)
        grad_value = grad_value.at[:, :, :keys].add(jnp.einsum("bknt,bknc->bktc", kept, block_grad))
        grad_weights = jnp.einsum("bknc,bktc->bknt", block_grad, value[:, :, :keys])
        grad_weights = _drop(grad_weights.astype(weights.dtype), dropout_key, start, rate)
        delta = jnp.sum(block_out * block_grad, axis=-1, keepdims=True).astype(weights.dtype)
        grad_scores = (weights * (grad_weights - delta) * scale).astype(query.dtype)
        grad_query = jnp.einsum("bknt,bktc->bknc", grad_scores, key[:, :, :keys])
        grad_queries.append(_unfold(grad_query, query.shape[1]))
        grad_key = grad_key.at[:, :, :keys].add(jnp.einsum("bknt,bknc->bktc", grad_scores, block))
    return jnp.concatenate(grad_queries, axis=2), grad_key, grad_value, None, None


attention.defvjp(_forward, _backward)


def _scores(block, key, mask, start, stop, scale):
    """Float32 scores [B, K, G·n, t] of a block of n queries, -inf where the mask forbids."""
    scores = jnp.einsum("bknc,bktc->bknt", block, key)
    scores = scores.astype(jnp.promote_types(scores.dtype, jnp.float32)) * scale
    allowed = mask.allowed(start, stop, key.shape[2])
    if allowed is None:
        return scores
    groups = block.shape[2] // (stop - start)
    allowed = jnp.tile(allowed, (1, groups, 1))[:, None]
    return jnp.where(allowed, scores, -jnp.inf)


def _drop(weights, dropout_key, start, rate):
    """Dropout, the same for the same key and block: forward and backward draw it alike."""
    if dropout_key is None or rate == 0.0:
        return weights
    key = jax.random.fold_in(dropout_key, start)
    keep = jax.random.bernoulli(key, 1.0 - rate, weights.shape)
    return jnp.where(keep, weights / (1.0 - rate), 0.0)


def _fold(x, kv_heads):
    """[B, K·G, n, C] to [B, K, G·n, C]: the queries that share a key head, in one axis."""
    batch, heads, length, channels = x.shape
    x = x.reshape(batch, kv_heads, heads // kv_heads, length, channels)
    return x.reshape(batch, kv_heads, heads // kv_heads * length, channels)


def _unfold(x, heads):
    batch, kv_heads, rows, channels = x.shape
    groups = heads // kv_heads
    # In two steps, each of which keeps a sharding over the heads.
    x = x.reshape(batch, kv_heads, groups, rows // groups, channels)
    return x.reshape(batch, heads, rows // groups, channels)
