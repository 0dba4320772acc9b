"""The input embedding: tokens to the residual stream."""

import functools
import math
from typing import Any

import jax
import jax.numpy as jnp
from jax.nn import initializers

from llmjax import collectives, mesh
from llmjax.models import layers
from llmjax.models.config import ModelConfig
from llmjax.spec import Param
from llmjax.weights import Lora, Weight, einsum, parted


def embedding_spec(config: ModelConfig) -> dict[str, Any]:
    """The tables of tokens, positions and token types, and the norm and projection after them."""
    width, normal = config.table_dim, initializers.normal(config.init_std)

    def table(rows: int, axis: str | None = None) -> Param:
        return Param((rows, width), (axis, "outer_embed"), normal, inputs=1, table="input")

    spec: dict[str, Any] = {"embedding": table(config.vocab_size, "vocab")}
    if has_positions(config):
        spec["positions"] = table(config.max_length + config.embedding.offset)
    if config.embedding.token_types:
        spec["token_types"] = table(config.embedding.token_types)
    if config.embedding.norm:
        spec["embedding_norm"] = layers.norm_spec(config, (width,))
    if width != config.embed_dim:
        spec["embedding_projection"] = {
            "kernel": Param((width, config.embed_dim), (None, "outer_embed"), normal, inputs=1)
        }
        if config.bias == "all":
            bias = Param((config.embed_dim,), (None,), initializers.zeros)
            spec["embedding_projection"]["bias"] = bias
    return spec


def has_positions(config: ModelConfig) -> bool:
    """Whether the model has a position table, for the input or for DeBERTa's mask decoder."""
    return config.position == "learned" or config.disentangled.mask_decoder > 0


def embed(
    params: Any,
    tokens: jax.Array,
    positions: jax.Array,
    token_types: jax.Array | None,
    config: ModelConfig,
    key: jax.Array | None,
    where: layers.Where = layers.EVERYWHERE,
) -> jax.Array:
    """The sum of a token's embeddings, with the model's norm and projection, [B, S, D].

    Args:
        params: as declared by `embedding_spec`.
        tokens: int32 [B, S].
        positions: int32 [B or 1, S].
        token_types: int32 [B, S]; None means type 0 for all.
        config: model configuration.
        key: dropout key; None disables dropout.
        where: row and position numbers of the tokens, for dropout.
    """
    x = look_up(params["embedding"], tokens, config.compute_dtype, ("vocab", None), layers.HIDDEN)
    if config.embedding.scaled:
        x = x * jnp.asarray(math.sqrt(config.embed_dim), x.dtype)
    if config.position == "learned":
        x = x + embed_positions(params, positions, tokens.shape[0], config)
    if config.embedding.token_types:
        types = jnp.zeros((1, 1), jnp.int32) if token_types is None else token_types
        x = x + _look_up(params["token_types"], types, tokens.shape[0], config)
    if config.embedding.norm:
        x = layers.norm(params["embedding_norm"], x, config)
    x = layers.dropout(x, config.dropout.embedding, key, where)
    if "embedding_projection" in params:
        projection = params["embedding_projection"]
        x = einsum("bse,ed->bsd", x, projection["kernel"], layers.HIDDEN)
        x = x + projection["bias"].astype(x.dtype) if "bias" in projection else x
    return x


def embed_positions(
    params: Any, positions: jax.Array, batch_size: int, config: ModelConfig
) -> jax.Array:
    """The embeddings of absolute positions [B or 1, S], as wide as the tables."""
    return _look_up(params["positions"], positions + config.embedding.offset, batch_size, config)


def _look_up(table, rows, batch_size, config):
    batch, *rest = layers.HIDDEN
    axes = (batch if rows.shape[0] == batch_size else None, *rest)
    if rows.shape[1] == 1:  # token types, all alike
        axes = (None, None, None)
    return look_up(table, rows, config.compute_dtype, (None, None), axes)


def look_up(
    table: Weight, rows: jax.Array, dtype: jnp.dtype, table_axes: mesh.Axes, axes: mesh.Axes
) -> jax.Array:
    """Looks up rows [B, S] of a table [V, D] of any leaf type.

    Args:
        table: the table.
        rows: int32, row indices.
        dtype: dtype of the result.
        table_axes: logical axes along which the table stays sharded during the look-up.
        axes: logical axes of the result, [B, S, D].
    """
    if isinstance(table, Lora):
        low = look_up(table.a, rows, dtype, (table_axes[0], None), axes)
        corrected = einsum("bsr,rd->bsd", table.scale * low, table.b, axes)
        return look_up(table.base, rows, dtype, table_axes, axes) + corrected
    return _rows(*parted(table), rows, dtype, table_axes, axes)


@functools.partial(jax.custom_vjp, nondiff_argnums=(3, 4, 5))
def _rows(
    table: jax.Array,
    terms: jax.Array | None,
    rows: jax.Array,
    dtype: jnp.dtype,
    table_axes: mesh.Axes,
    axes: mesh.Axes,
) -> jax.Array:
    """Rows [...] of a table [V, D] in `dtype`; gradients accumulate in the table's dtype.

    In bfloat16, a row that occurs thousands of times would lose most of its gradient to rounding,
    and GPUs lack a fast bfloat16 addition. If devices split the table, each rounds its sums to
    `dtype` before they are scattered, as products do. Terms get the gradient if there are any.
    """
    del terms
    # The width is gathered first, so that the look-up only crosses devices along the vocabulary.
    table = jnp.asarray(table, dtype)
    over = _over(rows)
    table = collectives.gathered(table, over) if _shared(table, over) else table
    return mesh.sharded(mesh.place(table, table_axes).at[rows].get, axes)()


def _look_up_forward(table, terms, rows, dtype, table_axes, axes):
    return _rows(table, terms, rows, dtype, table_axes, axes), (table, terms, rows)


def _look_up_backward(dtype, table_axes, axes, kept, grad):
    table, terms, rows = kept
    over = _over(rows)
    shared = _shared(table, over)
    if shared or terms is not None:
        count, width = table.shape[0] // mesh.size(table_axes[0]), table.shape[1]

        def add(rows, grad):
            first = collectives.index(table_axes[0]) * count
            here = (rows >= first) & (rows < first + count)
            at = jnp.where(here, rows - first, count).reshape(-1)
            sums = dtype if shared else table.dtype
            return _add_up(at, grad.reshape(-1, width).astype(table.dtype), count, sums)

        if terms is not None:
            own = collectives.terms_of_sum(add, (rows, grad), over, jax.typeof(terms))
            return None, own, None
        like = jax.typeof(table).sharding.spec
        summed = collectives.sum_of_parts(add, (rows, grad), over, like)
        return summed.astype(table.dtype), None, None

    def plain(table):
        return mesh.sharded(mesh.place(table, table_axes).at[rows].get, axes)()

    _, pull = jax.vjp(plain, table)
    return *pull(grad.astype(table.dtype)), None, None


def _add_up(at: jax.Array, values: jax.Array, count: int, dtype: jnp.dtype) -> jax.Array:
    """Sums values [N, D] by their index, in `dtype`: [count, D].

    Equal indices are summed in a compact array first, so no table of the values' precision is
    needed.
    """
    order = jnp.argsort(at)
    at, values = at[order], values[order]
    begins = jnp.concatenate([at[:1] >= 0, at[1:] != at[:-1]])
    group = jnp.cumsum(begins) - 1
    zeros = jax.lax.full_like(values, 0)
    sums = zeros.at[group].add(values, indices_are_sorted=True)
    # Unused groups keep an index out of bounds, which `mode="drop"` skips.
    place = jnp.full_like(at, count).at[group].set(at, indices_are_sorted=True)
    table = jax.lax.full_like(values, 0, dtype, (count, values.shape[1]))
    return table.at[place].set(sums.astype(dtype), mode="drop", indices_are_sorted=False)


def _over(rows):
    """The mesh axes that split the rows."""
    return frozenset(name for names in collectives.split(rows) for name in names)


def _shared(table, over):
    """Whether the table is split over mesh axes that also split the rows."""
    return bool(over & {name for names in collectives.split(table) for name in names})


_rows.defvjp(_look_up_forward, _look_up_backward)
