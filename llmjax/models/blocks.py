"""One block: attention and MLP with their norms, each added to the residual stream."""

from typing import Any

import jax
from flax import struct

from llmjax.kernels.flash_attention import Mask
from llmjax.models import disentangled, layers
from llmjax.models.adapter import adapted
from llmjax.models.attention import attention, attention_spec
from llmjax.models.config import ModelConfig
from llmjax.models.experts import Routing, experts, experts_spec
from llmjax.models.mlp import mlp, mlp_spec


@struct.dataclass
class Context:
    """Inputs shared by all blocks of a kind.

    Attributes:
        mask: which pairs attend.
        rope: from `layers.rope_tables`; None for no rotation.
        relative: from `disentangled.relative_states`; None for ordinary attention.
        where: row and position numbers of the activations, for dropout.
    """

    mask: Mask
    rope: tuple[jax.Array, jax.Array] | None = None
    relative: jax.Array | None = None
    where: layers.Where = layers.EVERYWHERE


@struct.dataclass
class Out:
    """Outputs of a block besides its activations.

    Attributes:
        cache: the layer's cache, with the new keys and values.
        routing: the routing of tokens to the block's experts.
    """

    cache: dict[str, jax.Array] | None = None
    routing: Routing | None = None


def block_spec(config: ModelConfig, *, first: bool = False) -> dict[str, Any]:
    """The parameters of a block, or of the first block, which may differ."""
    spec: dict[str, Any] = {"attention": attention_spec(config)}
    if config.disentangled.terms:
        spec["attention"] |= disentangled.disentangled_spec(config)
    if config.experts.count:
        spec["experts"] = experts_spec(config)
    else:
        spec["mlp"] = mlp_spec(config)
    for name in ("attention", "mlp"):
        if config.norm_order != "output" and (config.first_norm or not first or name == "mlp"):
            spec[f"{name}_norm"] = layers.norm_spec(config)
        if config.norm_order in ("both", "output"):
            spec[f"{name}_out_norm"] = layers.norm_spec(config)
    if first and config.disentangled.convolution:
        spec["convolution"] = disentangled.convolution_spec(config)
    return spec


def block(
    config: ModelConfig,
    x: jax.Array,
    layer: dict[str, Any],
    context: Context,
    seen: jax.Array | None = None,
) -> tuple[jax.Array, Out]:
    """Applies attention and MLP to x [B, S, D], each with its residual connection.

    Args:
        config: model configuration.
        x: activations.
        layer: the block's "params", its "key" for dropout or None, its "cache" or None.
        context: inputs shared by blocks of the kind.
        seen: the states that attention reads if they differ from x: in DeBERTa's mask decoder,
            those that enter it.
    """
    params, key, cache = layer["params"], layer["key"], layer["cache"]
    keys = [None] * 4 if key is None else list(jax.random.split(key, 4))
    before = x
    mixed, cache = _attend(params, x, config, context, cache, keys[0], seen)
    x = _add(params, "attention", x, mixed, config, keys[1], context.where)
    norm = _norm_before(params, "mlp", config)
    routing = None
    if "experts" in params:
        inner, routing = experts(
            params["experts"],
            norm,
            x,
            config,
            segment_ids=context.mask.segment_ids,
            positions=context.where.positions,
            limited=cache is None,
        )
    else:
        inner = mlp(params["mlp"], norm, x, config)
    x = _add(params, "mlp", x, inner, config, keys[2], context.where)
    if "convolution" in params:
        segments = context.mask.segment_ids
        x = disentangled.convolution(
            params["convolution"],
            before,
            x,
            config,
            segment_ids=segments,
            where=context.where,
            key=keys[3],
        )
    return x, Out(cache, routing)


def _attend(params, x, config, context, cache, key, seen):
    norm = _norm_before(params, "attention", config)
    if not config.disentangled.terms:
        return attention(
            params["attention"],
            norm,
            x,
            config,
            mask=context.mask,
            rope_tables=context.rope,
            cache=cache,
            where=context.where,
            key=key,
        )
    states, queries = (x, None) if seen is None else (seen, x)
    mixed = disentangled.disentangled_attention(
        params["attention"],
        norm,
        states,
        config,
        mask=context.mask,
        relative=context.relative,
        queries=queries,
        where=context.where,
        key=key,
    )
    return mixed, None


def _norm_before(params, name, config):
    """The parameters of the norm before attention or MLP, or None."""
    return params.get(f"{name}_norm") if config.norm_order in ("pre", "both") else None


def _add(params, name, x, added, config, key, where):
    """x + added, with the norms after attention or MLP and the adapter before the addition."""
    if config.norm_order in ("both", "output"):
        added = layers.norm(params[f"{name}_out_norm"], added, config)
    after = params[f"{name}_norm"] if config.norm_order == "post" else None
    axes = layers.stream_axes(x.shape[1])
    added = layers.dropout(added, config.dropout.hidden, key, where, axes)
    added = adapted(params.get(f"{name}_adapter"), x, added, after, config)
    return layers.norm(after, x + added, config)
