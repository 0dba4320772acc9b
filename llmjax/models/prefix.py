"""Prefix keys and values before all tokens, added by `peft.prefix` (Li & Liang 2021).

A layer has "prefix_key" and "prefix_value" [K, P, C] among the parameters of its attention. Every
query sees all of them, regardless of segment, window and direction. They are neither rotated nor
normalized, and token positions start at P, as in `transformers`, which puts prefixes in the cache.
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp

from llmjax import mesh, tree
from llmjax.kernels import dropout
from llmjax.kernels.cap import bend
from llmjax.models import layers, remat
from llmjax.models.config import ModelConfig

NAMES = ("prefix_key", "prefix_value")
_ROWS = ("batch", "kv_heads", None, "sequence", None)  # [B, K, G, S, ...]


def length_of(attention: dict[str, Any]) -> int:
    """P of one layer's attention or of stacked layers; 0 without a prefix."""
    key = attention.get("prefix_key")
    return 0 if key is None else key.shape[-2]


def length(params: Any) -> int:
    """P of a model's parameters or of their spec; 0 without a prefix."""
    if "prefix" in params:
        return params["prefix"]["embedding"].shape[0]
    blocks = params["layers"]
    return length_of((blocks[0] if isinstance(blocks, list) else blocks)["attention"])


def longest_row(params: Any, config: ModelConfig) -> int | None:
    """The maximum number of tokens in a row that the model has positions for; None: no limit.

    Args:
        params: the model's parameters, or their spec.
        config: model configuration.
    """
    return config.max_length - length(params) if config.position == "learned" else None


def unfolded(params: Any, config: ModelConfig) -> Any:
    """A model's parameters with each layer's prefix among those of its attention.

    Computes the prefixes of a reparametrisation (entry "prefix") for all layers, and removes it.
    """
    if "prefix" not in params:
        return params
    pair = dict(zip(NAMES, _prefixes(params["prefix"]), strict=True))
    blocks = params["layers"]

    def into(block, new):
        return block | {"attention": block["attention"] | new}

    if isinstance(blocks, list):
        blocks = [into(*both) for both in zip(blocks, tree.unstack(pair), strict=True)]
    else:
        blocks = into(blocks, pair)
    return {name: value for name, value in params.items() if name != "prefix"} | {"layers": blocks}


def _prefixes(params: dict[str, jax.Array]) -> jax.Array:
    """The keys and values of all layers, [2, L, K, P, C]: out(tanh(hidden(embedding)))."""
    inner = jnp.tanh(params["embedding"] @ params["hidden"] + params["hidden_bias"])
    out = mesh.place(params["out"], (None, None, None, "kv_heads", None))
    axes = (None, "layers", "kv_heads", None, None)
    product = mesh.sharded(functools.partial(jnp.einsum, "pm,mltkc->tlkpc"), axes)
    bias = mesh.place(jnp.transpose(params["out_bias"], (1, 0, 2, 3)), (*axes[:3], None))
    return product(inner, out) + bias[:, :, :, None]


def joined(
    params: dict[str, Any],
    queries: jax.Array,
    result: tuple[jax.Array, jax.Array],
    config: ModelConfig,
    *,
    where: layers.Where = layers.EVERYWHERE,
    key: jax.Array | None = None,
) -> jax.Array:
    """Attention over the prefix and all other keys, [B, H, S, C].

    Softmaxes over parts of the keys are combined by their log-sum-exps (He et al. 2022, equation
    7). Both parts share one dropout mask, in which prefix keys are numbered from -P on.

    Args:
        params: parameters of the layer's attention.
        queries: [B, H, S, C].
        result: attention over the rest, [B, H, S, C], and its log-sum-exps [B, H, S].
        config: model configuration.
        where: row and position numbers of the queries, for dropout.
        key: the key of attention dropout; None disables dropout.
    """

    def join(given, key, value, where, draw):
        queries, (mixed, log_sum) = given
        found, total = _attend(queries, key, value, config, where, draw)
        share = jax.nn.sigmoid(total - log_sum)[..., None]
        rest = jax.nn.sigmoid(log_sum - total)[..., None]
        return (mixed * rest + found * share).astype(mixed.dtype)

    again = remat.at_level(config, "dots")
    pair = params["prefix_key"], params["prefix_value"]
    return again(join)((queries, result), *pair, where, key)


def _attend(queries, key, value, config, where, draw) -> tuple[jax.Array, jax.Array]:
    """Attention over the prefix alone, in float32: [B, H, S, C] and its log-sum-exps [B, H, S]."""
    batch, heads, length, channels = queries.shape
    kv_heads = len(key)
    wide = jnp.promote_types(queries.dtype, jnp.float32)

    def product(equation, x, prefix):
        operation = functools.partial(jnp.einsum, equation, preferred_element_type=wide)
        return mesh.sharded(operation, _ROWS)(x, prefix.astype(x.dtype))

    folded = mesh.sharded(jnp.reshape, _ROWS)(
        queries, (batch, kv_heads, heads // kv_heads, length, channels)
    )
    scores = product("bkgsc,kpc->bkgsp", folded, key) * config.score_scale
    scores, _ = bend(scores, config.attention.cap)
    total = jax.nn.logsumexp(scores, axis=-1)
    weights = _survivors(jnp.exp(scores - total[..., None]), config, where, draw)
    out = product("bkgsp,kpc->bkgsc", weights, value)
    axes = ("batch", "heads", "sequence", None)
    out = mesh.sharded(jnp.reshape, axes)(out, queries.shape)
    return out, mesh.sharded(jnp.reshape, axes[:3])(total, queries.shape[:3])


def _survivors(weights, config, where, key) -> jax.Array:
    """Applies dropout to weights [B, K, G, S, P]."""
    rate = config.dropout.attention
    if key is None or not rate:
        return weights
    batch, kv_heads, groups, length, size = weights.shape
    draw = dropout.draw(key, where.rows, batch, kv_heads, groups)
    numbers = jnp.arange(length, dtype=jnp.int32) if where.positions is None else where.positions
    queries = mesh.place(numbers, ("sequence",))[:, None]
    heads = mesh.place(draw.heads, ("batch", "kv_heads"))[..., None] + jnp.arange(groups)
    keys = jnp.arange(-size, 0)
    keep = dropout.survives(draw.seeds, heads[..., None, None], queries, keys, rate)
    return jnp.where(keep, weights / (1.0 - rate), 0.0)
