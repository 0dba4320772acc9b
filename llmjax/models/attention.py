"""Self-attention with grouped heads, and its key/value cache."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
from flax import struct
from jax.nn import initializers

from llmjax import lookup, mesh
from llmjax.kernels.flash_attention import (
    Mask,
    flash_attention,
    flash_attention_with_log_sum,
)
from llmjax.models import layers, prefix, remat
from llmjax.models.config import ModelConfig
from llmjax.spec import Param
from llmjax.weights import einsum

CACHE_AXES = ("batch", "kv_heads", None, None)


@struct.dataclass
class KVCache:
    """Keys and values of the tokens so far, and the number of tokens in each row.

    Attributes:
        layers: for each layer {"key": [B, K, T, C], "value": [B, K, T, C]}; on CPUs keys are
            stored transposed, [B, K, C, T], the fastest layout for products with a single query.
        length: int32 [B], tokens in each row; entries beyond it are never attended to.
    """

    layers: list[dict[str, jax.Array]]
    length: jax.Array

    @property
    def capacity(self) -> int:
        """T, the maximum number of tokens in a row."""
        return self.layers[0]["value"].shape[2]


def empty_cache(config: ModelConfig, batch_size: int, capacity: int) -> KVCache:
    """An empty cache for `batch_size` rows of up to `capacity` tokens, sharded over the mesh.

    Raises:
        ValueError: the model is bidirectional: its earlier tokens depend on later ones.
    """
    require_causal(config)

    def zeros(*shape):
        shape = (batch_size, config.kv_heads, *shape)
        return mesh.sharded(jnp.zeros, CACHE_AXES)(shape, config.compute_dtype)

    channels = config.channels
    filled = [
        {
            "key": zeros(*((channels, capacity) if _in_columns() else (capacity, channels))),
            "value": zeros(capacity, channels),
        }
        for _ in range(config.num_layers)
    ]
    length = mesh.sharded(jnp.zeros, ("batch",))((batch_size,), jnp.int32)
    return KVCache(filled, length)


def put_rows(cache: KVCache, fresh: KVCache, origin: jax.Array) -> KVCache:
    """Replaces rows of a cache by rows of another cache, whose capacity is no larger.

    Args:
        cache: a cache of B rows.
        fresh: a cache of any number of rows.
        origin: int32 [B], the row of `fresh` that replaces each row; -1 keeps the row.
    """

    def put(old, new):
        part = tuple(slice(size) for size in (None, *new.shape[1:]))
        taken = jnp.expand_dims(origin >= 0, range(1, old.ndim))
        rows = jnp.where(taken, lookup.take_rows(new, origin, CACHE_AXES[: old.ndim]), old[part])
        return jax.lax.dynamic_update_slice(old, rows, (0,) * old.ndim)

    return jax.tree.map(put, cache, fresh)


def require_causal(config: ModelConfig) -> None:
    """Raises ValueError for a bidirectional model, whose earlier tokens depend on later ones."""
    if not config.attention.causal:
        raise ValueError(f"a {config.family} model is bidirectional and cannot continue a cache")


def attention_spec(config: ModelConfig) -> dict[str, Any]:
    """The parameters of self-attention."""
    width, channels = config.embed_dim, config.channels
    normal = initializers.normal(config.init_std)
    asked, given = (config.num_heads, channels), (config.kv_heads, channels)
    query = Param((width, *asked), ("embed", "heads", None), normal, inputs=1)
    shared = Param((width, *given), ("embed", "kv_heads", None), normal, inputs=1)
    back = layers.residual_init(config)
    out = Param((*asked, width), ("heads", None, "embed"), back, inputs=2)
    spec: dict[str, Any] = {"query": query, "key": shared, "value": shared, "out": out}
    zeros = initializers.zeros
    if config.bias != "none":
        spec["query_bias"] = Param(asked, ("heads", None), zeros)
        spec["key_bias"] = Param(given, ("kv_heads", None), zeros)
        spec["value_bias"] = Param(given, ("kv_heads", None), zeros)
    if config.bias == "all":
        spec["out_bias"] = Param((width,), (None,), zeros)
    for name, axis, heads in (
        ("query_norm", "heads", config.num_heads),
        ("key_norm", "kv_heads", config.kv_heads),
    ):
        if config.attention.qk_norm == "head":
            spec[name] = layers.norm_spec(config, (channels,))
        if config.attention.qk_norm == "width":
            spec[name] = layers.norm_spec(config, (heads, channels), (axis, None))
    return spec


def attention(
    params: dict[str, Any],
    norm: dict[str, Any] | None,
    x: jax.Array,
    config: ModelConfig,
    *,
    mask: Mask,
    rope_tables: tuple[jax.Array, jax.Array] | None,
    cache: dict[str, jax.Array] | None = None,
    where: layers.Where = layers.EVERYWHERE,
    key: jax.Array | None = None,
) -> tuple[jax.Array, dict[str, jax.Array] | None]:
    """Self-attention over norm(x), for x [B, S, D].

    Args:
        params: as declared by `attention_spec`, with an optional prefix.
        norm: parameters of the norm before attention; None for no norm.
        x: activations.
        config: model configuration.
        mask: which pairs attend; with a cache, its offset is where x begins in the cache.
        rope_tables: from `layers.rope_tables`, or None for no rotation.
        cache: one layer of a `KVCache`.
        where: row and position numbers of the activations, for dropout.
        key: dropout key; None disables dropout.

    Returns:
        The output [B, S, D], and the layer's cache with the new keys and values, or None.
    """

    def prepare(x, params, norm, rope_tables):
        x = layers.from_stream(layers.norm(norm, x, config))
        queries = project(params, "query", x, "heads")
        keys = project(params, "key", x, "kv_heads")
        values = project(params, "value", x, "kv_heads")
        queries = layers.norm(params.get("query_norm"), queries, config)
        keys = layers.norm(params.get("key_norm"), keys, config)
        if rope_tables is not None:
            queries, keys = layers.rope(queries, rope_tables), layers.rope(keys, rope_tables)
        return tuple(jnp.swapaxes(x, 1, 2) for x in (queries, keys, values))

    again = remat.at_level(config, "dots")
    queries, keys, values = again(prepare)(x, params, norm, rope_tables)
    if cache is not None:
        cache = _append(cache, keys, values, mask.offset)
        keys, values = cached(cache)
    options: dict[str, Any] = {
        "scale": config.score_scale,
        "cap": config.attention.cap,
        "dropout_rate": config.dropout.attention,
        "dropout_key": key,
        "dropout_rows": where.rows,
    }
    if prefix.length_of(params):
        result = flash_attention_with_log_sum(queries, keys, values, mask, **options)
        mixed = prefix.joined(params, queries, result, config, where=where, key=key)
    else:
        mixed = flash_attention(queries, keys, values, mask, **options)
    out = einsum("bshc,hcd->bsd", jnp.swapaxes(mixed, 1, 2), params["out"], layers.HIDDEN)
    return layers.add_bias(layers.to_stream(out), params, "out"), cache


def project(params: dict[str, Any], name: str, x: jax.Array, heads: str = "heads") -> jax.Array:
    """Projects x [B, S, D] to [B, S, H, C], or to [B, S, K, C] with `heads` "kv_heads"."""
    out = einsum("bsd,dhc->bshc", x, params[name], ("batch", "sequence", heads, None))
    return layers.add_bias(out, params, name)


def _in_columns() -> bool:
    """Whether a cache stores keys transposed."""
    return mesh.platform() == "cpu"


def cached(layer: dict[str, jax.Array]) -> tuple[jax.Array, jax.Array]:
    """Keys and values [B, K, T, C] of one layer of a `KVCache`."""
    return _turned(layer["key"]), layer["value"]


def _turned(keys: jax.Array) -> jax.Array:
    """Converts keys [B, K, T, C] to the layout of a cache, or back."""
    return jnp.swapaxes(keys, 2, 3) if _in_columns() else keys


def _append(cache, keys, values, offset):
    """Writes keys and values [B, K, S, C] after the `offset` tokens of each row."""

    def write(axis, row, update, start):
        return jax.lax.dynamic_update_slice_in_dim(row, update, start, axis)

    columns = jax.vmap(functools.partial(write, 2 if _in_columns() else 1))
    rows = jax.vmap(functools.partial(write, 1))
    return {
        "key": columns(cache["key"], _turned(keys), offset),
        "value": rows(cache["value"], values, offset),
    }
