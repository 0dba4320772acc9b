"""Attention by blocks of queries in plain XLA, forward and backward.

Each block of queries only reads the keys that the mask can allow, so a causal mask costs about
half. No S×T array is stored: the backward pass recomputes the weights from the log-sum-exp of the
forward pass (FlashAttention-2, Dao 2023, algorithms 1 and 2). The query heads of a group are folded
into the query axis, so every product is one batched matrix multiplication, and keys are never
repeated.
"""

import functools
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from llmjax import mesh
from llmjax.kernels import dropout, tuning
from llmjax.kernels.cap import bend
from llmjax.kernels.flash_attention.tiles import Gradients, Options, Result

MAX_BLOCKS = 8  # more blocks skip more of the masked half; fewer make larger products
MIN_BLOCK = 128


class Blocks(NamedTuple):
    """Sizes for `tuning`: the maximum number of blocks and the minimum queries per block."""

    most: int
    least: int


def _blocks(query: jax.Array) -> list[tuple[int, int]]:
    """Splits the queries into ranges of equal size, except for the last."""
    *_, length, channels = query.shape
    case = tuning.case(query.dtype, channels)
    most, least = tuning.sizes("flash_attention.xla", case, Blocks(MAX_BLOCKS, MIN_BLOCK))
    size = max(least, -(-length // most))
    return [(start, min(start + size, length)) for start in range(0, length, size)]


def forward(query, key, value, mask, draw: dropout.Draw, options: Options) -> Result:
    """See `attend.Implementation`."""
    scale, cap, rate, _ = options
    product = _product(query.dtype)
    outs, log_sums = [], []
    for start, stop in _blocks(query):
        seen = slice(*mask.key_range(start, stop, key.shape[2]))
        block = _fold(query[:, :, start:stop], key.shape[1])
        scores = product("bknc,bktc->bknt", block, key[:, :, seen])
        scores, _ = bend(scores * scale, cap)
        scores = _masked(scores, _allowed(mask, start, stop, seen, block))
        highest = jnp.max(scores, axis=-1, keepdims=True)
        # A row that sees no key has only -inf: keep the subtraction finite, so its weights are 0.
        highest = jnp.where(highest == -jnp.inf, 0.0, highest)
        weights = jnp.exp(scores - highest)
        total = jnp.sum(weights, axis=-1, keepdims=True)
        keep = _survivors(draw, rate, (start, stop), seen, block)
        weights = _drop(weights, keep, rate).astype(value.dtype)
        out = product("bknt,bktc->bknc", weights, value[:, :, seen])
        out = (out / jnp.where(total > 0, total, 1.0)).astype(query.dtype)
        outs.append(_unfold(out, query.shape[1]))
        log_sums.append(_unfold(highest + jnp.log(total), query.shape[1]))
    return jnp.concatenate(outs, axis=2), jnp.concatenate(log_sums, axis=2)[..., 0]


def backward(query, key, value, mask, draw, result: Result, grads: Result, options) -> Gradients:
    """See `attend.Implementation`; scores are [keys, queries], unlike in the forward pass.

    Two of the three gradients are then plain products. It also stops XLA, which merges equal
    expressions, from keeping the forward pass's scores for the backward pass.
    """
    scale, cap, rate, _ = options
    product = _product(query.dtype)
    (out, log_sum), (grad, grad_sum) = result, grads
    # +inf gives weights of 0 in rows that see no key.
    log_sum = jnp.where(log_sum == -jnp.inf, jnp.inf, log_sum)[..., None]
    # The gradient of a score is weight · (gradient of the weight - delta), where delta is common to
    # the row. The derivative of the log-sum-exp is the weight too, so its cotangent joins delta.
    deltas = jnp.sum(out.astype(grad_sum.dtype) * grad, axis=-1) - grad_sum
    grad_key, grad_value = (jnp.zeros_like(x, grad_sum.dtype) for x in (key, value))
    grad_queries = []
    for start, stop in _blocks(query):
        seen = slice(*mask.key_range(start, stop, key.shape[2]))
        block, block_grad, delta, sums = (
            _fold(x[:, :, start:stop], key.shape[1])
            for x in (query, grad, deltas[..., None], log_sum)
        )
        # The added zero makes the scores wait for the gradient, so XLA cannot compute them early.
        waiting = block + 0 * block_grad.astype(block.dtype)
        scores = product("bktc,bknc->bktn", key[:, :, seen], waiting)
        scores, slope = bend(scores * scale, cap)
        allowed = _allowed(mask, start, stop, seen, block)
        scores = _masked(scores, _swap(allowed))
        weights = jnp.exp(scores - _swap(sums))
        keep = _swap(_survivors(draw, rate, (start, stop), seen, block))
        kept = _drop(weights, keep, rate).astype(value.dtype)
        grad_value = grad_value.at[:, :, seen].add(product("bktn,bknc->bktc", kept, block_grad))
        grad_weights = product("bktc,bknc->bktn", value[:, :, seen], block_grad)
        grad_weights = _drop(grad_weights, keep, rate)
        grad_scores = weights * (grad_weights - _swap(delta)) * slope * scale
        grad_scores = grad_scores.astype(query.dtype)
        grad_query = jnp.einsum("bktn,bktc->bknc", grad_scores, key[:, :, seen])
        grad_queries.append(_unfold(grad_query, query.shape[1]))
        grad_key = grad_key.at[:, :, seen].add(product("bktn,bknc->bktc", grad_scores, block))
    grad_query = jnp.concatenate(grad_queries, axis=2)
    return grad_query, grad_key.astype(key.dtype), grad_value.astype(value.dtype)


def _product(dtype: jnp.dtype) -> Callable:
    """An einsum whose sums are float32 or wider, and not rounded to the operands' precision."""
    wide = jnp.promote_types(dtype, jnp.float32)
    return functools.partial(jnp.einsum, preferred_element_type=wide)


def _allowed(mask, start, stop, seen, block):
    """Which keys the rows of a folded block see: bool [B or 1, 1, G·n, t], or None for all."""
    allowed = mask.allowed(start, stop, seen.stop, seen.start)
    if allowed is None:
        return None
    return jnp.tile(allowed, (1, block.shape[2] // (stop - start), 1))[:, None]


def _masked(scores, allowed):
    """-inf where the mask forbids."""
    return scores if allowed is None else jnp.where(allowed, scores, -jnp.inf)


def _swap(x):
    return None if x is None else jnp.swapaxes(x, -1, -2)


def _survivors(draw, rate, queries, seen, block):
    """The weights of a folded block that dropout keeps: bool [B, K, G·n, t], or None for all."""
    if not rate:
        return None
    start, stop = queries
    number = jnp.arange(block.shape[2])[:, None]
    head = draw.heads[..., None, None] + number // (stop - start)
    query = start + number % (stop - start)
    return dropout.survives(draw.seeds, head, query, jnp.arange(seen.start, seen.stop), rate)


def _drop(weights, keep, rate):
    """Zeroes dropped weights and scales up the rest."""
    return weights if keep is None else jnp.where(keep, weights / (1.0 - rate), 0.0)


def _fold(x, kv_heads):
    """[B, K·G, n, C] to [B, K, G·n, C]: the queries that share a key head, in one axis."""
    heads, length = x.shape[1:3]
    groups = heads // kv_heads
    return _reshape(x, (kv_heads, groups, length), (kv_heads, groups * length))


def _unfold(x, heads):
    """Inverts `_fold`."""
    kv_heads, rows = x.shape[1:3]
    groups = heads // kv_heads
    return _reshape(x, (kv_heads, groups, rows // groups), (heads, rows // groups))


def _reshape(x, between, after):
    """Reshapes [B, ..., C] in two steps, each of which keeps the sharding over rows and heads."""
    batch, channels = x.shape[0], x.shape[-1]
    for shape in (between, after):
        axes = ("batch", "kv_heads", *(None,) * len(shape))
        x = mesh.sharded(jnp.reshape, axes)(x, (batch, *shape, channels))
    return x
