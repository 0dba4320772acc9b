"""DeBERTa's disentangled attention, convolution and mask decoder.

He et al. 2021 (DeBERTa) and 2023 (DeBERTaV3), with the additions of the released v2 and v3 models:
distances in logarithmic buckets, positions projected with the content weights, a convolution.
"""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.nn import initializers

from llmjax import mesh
from llmjax.kernels import disentangled_attention as kernels
from llmjax.kernels.flash_attention import Mask
from llmjax.models import layers, remat
from llmjax.models.attention import project
from llmjax.models.config import ModelConfig
from llmjax.models.mlp import ACTIVATIONS
from llmjax.spec import Param
from llmjax.weights import einsum, materialize


def disentangled_spec(config: ModelConfig) -> dict[str, Param]:
    """The parameters that project positions, in addition to those of attention.

    Empty if positions are projected with the content weights (`disentangled.shared`).

    Raises:
        ValueError: attention options that disentangled attention does not support.
    """
    if config.attention.cap or config.attention.qk_norm != "none":
        raise ValueError(
            f"model.attention.cap={config.attention.cap}, qk_norm={config.attention.qk_norm}: "
            "disentangled attention supports neither; unset them, or unset disentangled.terms"
        )
    spec: dict[str, Param] = {}
    if config.disentangled.shared:
        return spec
    normal, zeros = initializers.normal(config.init_std), initializers.zeros
    heads = (config.num_heads, config.channels)
    for term, name in (("c2p", "position_key"), ("p2c", "position_query")):
        if term not in config.disentangled.terms:
            continue
        spec[name] = Param((config.embed_dim, *heads), ("embed", "heads", None), normal, inputs=1)
        if config.bias != "none":
            spec[f"{name}_bias"] = Param(heads, ("heads", None), zeros)
    return spec


def relative_spec(config: ModelConfig) -> dict[str, Any]:
    """The table of relative positions, one row per distinct distance, shared by all layers."""
    rows = 2 * config.disentangled.span
    normal = initializers.normal(config.init_std)
    shape, axes = (rows, config.embed_dim), (None, "outer_embed")
    spec: dict[str, Any] = {"table": Param(shape, axes, normal, inputs=1, table="input")}
    if config.disentangled.norm:
        spec["norm"] = layers.norm_spec(config)
    return spec


def relative_states(params: dict[str, Any], config: ModelConfig) -> jax.Array:
    """The relative position states [2·span, D] that attention projects."""
    table = mesh.place(
        jnp.asarray(materialize(params["table"]), config.compute_dtype), (None, None)
    )
    return layers.norm(params.get("norm"), table, config)


def relative_rows(length: int, config: ModelConfig) -> np.ndarray:
    """The table row of each distance (query - key), from length - 1 down to 1 - length.

    δ of He et al. 2021, equation 3. With buckets, distances up to half the bucket count have a row
    each; larger ones share logarithmic buckets, the last of which starts at `max_distance` - 1.
    Computed in float32, so that ties round as in the released models.

    Returns:
        int32 [2·length - 1], each in [0, 2·span).

    Raises:
        ValueError: half the bucket count is 0 or reaches max_distance - 1.
    """
    options = config.disentangled
    distance = np.arange(length - 1, -length, -1)
    if options.buckets:
        middle = options.buckets // 2
        if not 1 <= middle < options.max_distance - 1:
            raise ValueError(
                f"model.disentangled.buckets={options.buckets}, "
                f"max_distance={options.max_distance}: buckets must be at least 2, and half of "
                "them below max_distance - 1; buckets=0 tells all distances apart"
            )
        far = np.maximum(np.abs(distance), middle).astype(np.float32) / np.float32(middle)
        farthest = np.float32((options.max_distance - 1) / middle)
        logarithm = np.ceil(np.log(far) / np.log(farthest) * np.float32(middle - 1)) + middle
        near = np.abs(distance) <= middle
        distance = np.where(near, distance, np.sign(distance) * logarithm.astype(np.int64))
    return np.clip(distance + options.span, 0, 2 * options.span - 1).astype(np.int32)


def disentangled_attention(
    params: dict[str, Any],
    norm: dict[str, Any] | None,
    x: jax.Array,
    config: ModelConfig,
    *,
    mask: Mask,
    relative: jax.Array,
    queries: jax.Array | None = None,
    where: layers.Where = layers.EVERYWHERE,
    key: jax.Array | None = None,
) -> jax.Array:
    """Self-attention by content and relative position (He et al. 2021, equation 4).

    The score of query i and key j is the scaled sum of content-to-content, Qᶜ_i · Kᶜ_j,
    content-to-position, Qᶜ_i · Kʳ_δ(i,j), and position-to-content, Kᶜ_j · Qʳ_δ(i,j);
    `disentangled.terms` selects among the last two. The paper writes δ(j,i) in the last; the
    released models use δ(i,j).

    Args:
        params: as declared by `attention_spec` and `disentangled_spec`.
        norm: parameters of the norm before attention; None for no norm.
        x: activations [B, S, D], the source of keys and values.
        config: model configuration.
        mask: which pairs attend, without an offset. Queries that see no key give zero.
        relative: from `relative_states`, [2·span, D].
        queries: activations [B, S, D] that queries are projected from; None means x.
        where: row and position numbers of the activations, for dropout.
        key: key for dropout of attention weights and relative positions; None disables both.

    Returns:
        [B, S, D].
    """
    keys = (None, None) if key is None else jax.random.split(key)
    relative = layers.dropout(relative, config.dropout.hidden, keys[0], axes=(None, None))

    def prepare(states, params, norm):
        asking, seen, relative = states
        seen = layers.from_stream(layers.norm(norm, seen, config))
        asking = seen if asking is None else layers.from_stream(layers.norm(norm, asking, config))
        inputs = {"query": asking, "key": seen, "value": seen}
        content = [jnp.swapaxes(project(params, name, x), 1, 2) for name, x in inputs.items()]
        return content, _project_positions(params, relative, config)

    again = remat.at_level(config, "dots")
    content, positions = again(prepare)((queries, x, relative), params, norm)
    mixed = again(functools.partial(_attend, config))(content, positions, mask, keys[1], where.rows)
    out = einsum("bshc,hcd->bsd", jnp.swapaxes(mixed, 1, 2), params["out"], layers.HIDDEN)
    return layers.add_bias(layers.to_stream(out), params, "out")


def _attend(config, content, positions, mask, key, rows) -> jax.Array:
    """Values weighted by the softmax of the scores: [B, H, S, C]."""
    query, keyed, value = content
    return kernels.disentangled_attention(
        query,
        keyed,
        value,
        relative_rows(query.shape[2], config),
        mask,
        **positions,
        scale=config.score_scale,
        dropout_rate=config.dropout.attention,
        dropout_key=key,
        dropout_rows=rows,
    )


def _project_positions(params, relative, config) -> dict[str, jax.Array]:
    """The keys (c2p) and queries (p2c) of relative positions, each [H, 2·span, C]."""
    shared = config.disentangled.shared
    names = {
        "c2p": "key" if shared else "position_key",
        "p2c": "query" if shared else "position_query",
    }
    projected = {}
    for term in config.disentangled.terms:
        name = names[term]
        out = einsum("pd,dhc->phc", relative, params[name], (None, "heads", None))
        projected[term] = jnp.swapaxes(layers.add_bias(out, params, name), 0, 1)
    return projected


def convolution_spec(config: ModelConfig) -> dict[str, Any]:
    """The parameters of the convolution beside the first layer (v2-xlarge)."""
    width, dim = config.disentangled.convolution, config.embed_dim
    # In checkpoints the kernel is [out, in, width]: the layout "o i k -> k i o".
    normal = initializers.normal(config.init_std)
    shape, axes = (width, dim, dim), (None, "embed", None)
    spec: dict[str, Any] = {"kernel": Param(shape, axes, normal, inputs=2)}
    if config.bias == "all":
        spec["bias"] = Param((dim,), (None,), initializers.zeros)
    spec["norm"] = layers.norm_spec(config)
    return spec


def convolution(
    params: dict[str, Any],
    inputs: jax.Array,
    outputs: jax.Array,
    config: ModelConfig,
    *,
    segment_ids: jax.Array | None = None,
    where: layers.Where = layers.EVERYWHERE,
    key: jax.Array | None = None,
) -> jax.Array:
    """norm(outputs + activation(dropout(inputs * kernel + bias))), zero at padding.

    As in the released v2-xlarge model, which no paper describes. Neighbours outside a token's row
    or segment count as zero.

    Args:
        params: as declared by `convolution_spec`.
        inputs: [B, S, D], input of the first layer.
        outputs: [B, S, D], output of the first layer.
        config: model configuration.
        segment_ids: int32 [B, S], 0 for padding; None if each row is one segment.
        where: row and position numbers of the activations, for dropout.
        key: dropout key; None disables dropout.

    Returns:
        [B, S, D].
    """
    inputs, outputs = layers.from_stream(inputs), layers.from_stream(outputs)
    reach = config.disentangled.convolution // 2
    windows = []
    for step in range(-reach, reach + 1):
        neighbours = _step(inputs, step)
        if segment_ids is not None:
            same = (_step(segment_ids, step) == segment_ids) & (segment_ids != 0)
            neighbours = jnp.where(same[..., None], neighbours, 0)
        windows.append(neighbours)
    inner = einsum("bskd,kde->bse", jnp.stack(windows, axis=2), params["kernel"], layers.HIDDEN)
    inner = inner + params["bias"].astype(inner.dtype) if "bias" in params else inner
    inner = layers.dropout(inner, config.dropout.hidden, key, where)
    inner = ACTIVATIONS[config.disentangled.convolution_activation](inner)
    out = layers.norm(params["norm"], outputs + inner, config)
    out = out if segment_ids is None else jnp.where(segment_ids[..., None] != 0, out, 0)
    return layers.to_stream(out)


def _step(x: jax.Array, step: int) -> jax.Array:
    """x_{s + step} at each s of x [B, S, ...]; zero beyond the ends."""
    length = x.shape[1]
    ends = [(0, 0)] * x.ndim
    ends[1] = (max(-step, 0), max(step, 0))
    start = max(step, 0)
    return jnp.pad(x, ends)[:, start : start + length]


def mask_decoder(
    block: Callable[[jax.Array, jax.Array], jax.Array],
    positions: jax.Array,
    hidden: jax.Array,
    config: ModelConfig,
) -> jax.Array:
    """The enhanced mask decoder (He et al. 2021, section 3.2): absolute positions enter late.

    The last layer is applied `disentangled.mask_decoder` times with the same weights. Its input
    provides the keys and values each time. The first queries are that input plus absolute
    positions; later queries are the previous output.

    Args:
        block: (queries, hidden) → [B, S, D], a whole layer, whose residual stream is the queries.
        positions: embeddings of absolute positions, [B or 1, S, D].
        hidden: [B, S, D], input of the last layer.
        config: model configuration.

    Returns:
        [B, S, D], the input of the mlm head.
    """
    queries = hidden + positions
    for _ in range(config.disentangled.mask_decoder):
        queries = block(queries, hidden)
    return queries
