"""The transformer: its spec, and the forward pass from tokens to hidden states."""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from llmjax import mesh, tree
from llmjax import spec as specs
from llmjax.kernels.flash_attention import Mask, balance, restore
from llmjax.models import (
    blocks,
    disentangled,
    embedding,
    families,
    heads,
    layers,
    pipeline,
    prefix,
    remat,
    stack,
)
from llmjax.models.attention import KVCache, require_causal
from llmjax.models.config import ModelConfig
from llmjax.models.experts import Routing
from llmjax.models.placement import require_fits

Params = Any


class Rows(NamedTuple):
    """Per-row inputs of the blocks.

    Attributes:
        positions: int32 [B or 1, S].
        segment_ids: int32 [B, S], or None.
        offset: int32 [B], tokens of each row in the cache; None without a cache.
        where: row and position numbers for dropout.
    """

    positions: jax.Array
    segment_ids: jax.Array | None = None
    offset: jax.Array | None = None
    where: layers.Where = layers.EVERYWHERE


class Output(NamedTuple):
    """The outputs of a model.

    Attributes:
        hidden: [B, S, D], after the final norm.
        cache: the given cache with the tokens appended, or None.
        routing: routing statistics of a mixture of experts, summed over the layers, or None.
    """

    hidden: jax.Array
    cache: KVCache | None
    routing: Routing | None


def spec(config: ModelConfig) -> Any:
    """The tree of `Param` that declares a model's parameters."""
    declared = {**embedding.embedding_spec(config), "layers": _layers(config)}
    if config.disentangled.terms:
        declared["relative"] = disentangled.relative_spec(config)
    if config.norm_order != "post":
        declared["final_norm"] = layers.norm_spec(config)
    head = heads.head_spec(config)
    if head is not None:
        declared["head"] = head
    return families.name_params(declared, config)


def _layers(config: ModelConfig) -> Any:
    """The blocks' parameters: stacked for a scan, or a list if layers are unrolled.

    Unrolled layers are not stacked, as slicing the stack and stacking the gradients again would
    copy every weight twice a step.
    """
    block = blocks.block_spec(config)
    if config.scan_layers:
        return specs.map_params(lambda param: param.stack(config.num_layers), block)
    return [blocks.block_spec(config, first=True)] + [block] * (config.num_layers - 1)


def apply(
    params: Params,
    tokens: jax.Array,
    config: ModelConfig,
    *,
    segment_ids: jax.Array | None = None,
    positions: jax.Array | None = None,
    token_types: jax.Array | None = None,
    cache: KVCache | None = None,
    key: jax.Array | None = None,
) -> tuple[jax.Array, KVCache | None]:
    """Computes the hidden states that the heads read.

    Args:
        params: as declared by `spec`; `params["layers"]` may also be a list of L trees.
        tokens: int32 [B, S].
        config: model configuration.
        segment_ids: int32 [B, S]; tokens attend within equal ones, 0 is padding. With a cache,
            padding must be on the right, and is not counted.
        positions: int32 [B, S]; by default 0, 1, … from the row's start, or from the end of its
            cache. A prefix shifts them all by its length.
        token_types: int32 [B, S], for models with token types; by default all 0.
        cache: from `empty_cache` or an earlier call; the tokens are appended to it.
        key: dropout key; None disables dropout.

    Returns:
        Hidden states [B, S, D], after the final norm, and the cache with the tokens appended.

    Raises:
        ValueError: shapes do not match; there are more tokens than learned positions, or more than
            the capacity of the cache (its fill level is unknown at trace time); token types for a
            model without them; or a cache for an encoder.
    """
    output = forward(
        params,
        tokens,
        config,
        segment_ids=segment_ids,
        positions=positions,
        token_types=token_types,
        cache=cache,
        key=key,
    )
    return output.hidden, output.cache


def forward(
    params: Params,
    tokens: jax.Array,
    config: ModelConfig,
    *,
    segment_ids: jax.Array | None = None,
    positions: jax.Array | None = None,
    token_types: jax.Array | None = None,
    cache: KVCache | None = None,
    key: jax.Array | None = None,
) -> Output:
    """Like `apply`, but returns all outputs of the model."""
    params = prefix.unfolded(params, config)
    ahead = prefix.length(params)
    _check(tokens, config, segment_ids, positions, token_types, cache, ahead)
    length = tokens.shape[1]
    offset = None if cache is None else cache.length
    if positions is None:
        start = jnp.zeros((1, 1), jnp.int32) if offset is None else offset[:, None]
        positions = start + jnp.arange(length, dtype=jnp.int32)[None]
    keys = None if key is None else jax.random.split(key, config.num_layers + 1)
    positions = positions + ahead
    tokens, token_types, rows = _in_order(
        config, tokens, token_types, Rows(positions, None if cache else segment_ids, offset)
    )
    x = embedding.embed(
        params,
        tokens,
        rows.positions,
        token_types,
        config,
        None if keys is None else keys[-1],
        rows.where,
    )
    inputs = _per_layer(params["layers"], cache, keys, config)
    x, outs = _run(params, layers.to_stream(x), inputs, rows, config)
    hidden = layers.from_stream(layers.norm(params.get("final_norm"), x, config))
    if _is_balanced(config):
        hidden = restore(hidden, layers.HIDDEN)
    routing = _routing(outs) if config.experts.count else None
    if cache is None:
        return Output(hidden, None, routing)
    added = length if segment_ids is None else jnp.sum(segment_ids != 0, axis=1, dtype=jnp.int32)
    cache = KVCache([out.cache for out in outs], cache.length + added)
    return Output(hidden, cache, routing)


def _is_balanced(config: ModelConfig) -> bool:
    """Whether sequences are reordered by `balance`: causal ones split over devices."""
    return config.attention.causal and mesh.size("sequence") > 1


def _in_order(config, tokens, token_types, rows: Rows) -> tuple[jax.Array, Any, Rows]:
    """Tokens, token types and rows, in the order in which devices share a sequence."""
    if mesh.size("sequence") == 1:
        return tokens, token_types, rows
    positions = jnp.arange(tokens.shape[1], dtype=jnp.int32)[None]
    arrays = (tokens, token_types, rows.positions, rows.segment_ids, positions)

    def order(x):
        axes = (None if x.shape[0] == 1 else "batch", "sequence")
        return balance(x, axes) if _is_balanced(config) else mesh.place(x, axes)

    tokens, token_types, of_rows, segment_ids, positions = jax.tree.map(order, arrays)
    where = layers.Where(positions=positions[0])
    return tokens, token_types, Rows(of_rows, segment_ids, where=where)


def _check(tokens, config, segment_ids, positions, token_types, cache, ahead) -> None:
    if tokens.ndim != 2 or not tokens.shape[1]:
        raise ValueError(f"tokens {tokens.shape} must be [B, S], with at least one token in a row")
    given = {"segment_ids": segment_ids, "positions": positions, "token_types": token_types}
    for name, array in given.items():
        if array is not None and array.shape != tokens.shape:
            raise ValueError(f"{name} {array.shape} must have the shape of tokens, {tokens.shape}")
    if token_types is not None and not config.embedding.token_types:
        raise ValueError(
            "token_types are given, but the model has no token types: leave them out, or set "
            "model.embedding.token_types"
        )
    if cache is not None:
        require_causal(config)
        if tokens.shape[1] > cache.capacity:
            raise ValueError(
                f"{tokens.shape[1]} tokens exceed the cache's capacity of {cache.capacity}"
            )
    require_fits(config, *tokens.shape, cached=cache is not None)
    longest = tokens.shape[1] if cache is None else cache.capacity
    if embedding.has_positions(config) and longest + ahead > config.max_length:
        after = f" after a prefix of {ahead}" if ahead else ""
        raise ValueError(
            f"{longest} tokens{after} exceed the {config.max_length} learned positions of the model"
        )


def _contexts(rows: Rows, relative, config) -> dict[str, blocks.Context]:
    """The blocks' shared inputs, by kind of attention."""
    contexts = {}
    for kind in dict.fromkeys(config.attention.pattern):
        window = config.attention.window if kind == "local" else 0
        mask = Mask(rows.segment_ids, rows.offset, causal=config.attention.causal, window=window)
        rope = None
        if config.position == "rope":
            rope = layers.rope_tables(rows.positions, config, kind)
        contexts[kind] = blocks.Context(mask, rope, relative, rows.where)
    return contexts


def _per_layer(stacked, cache, keys, config) -> Any:
    """Each block's parameters, cache and dropout key.

    With a cache the layers are unrolled, so that each layer's cache is updated in place rather
    than copied through a loop's inputs and outputs.
    """
    if cache is None and not isinstance(stacked, list):
        return {"params": stacked, "key": None if keys is None else keys[:-1], "cache": None}
    unstacked = stacked if isinstance(stacked, list) else tree.unstack(stacked)
    return [
        {
            "params": params,
            "key": None if keys is None else keys[index],
            "cache": None if cache is None else cache.layers[index],
        }
        for index, params in enumerate(unstacked)
    ]


def _run(params, x, inputs, rows: Rows, config) -> tuple[jax.Array, Any]:
    """Runs all blocks, the last one as DeBERTa's mask decoder if the head needs it."""
    block = remat.at_level(config, "full")(functools.partial(blocks.block, config))
    pattern = config.attention.pattern
    relative = None
    if config.disentangled.terms:
        relative = disentangled.relative_states(params["relative"], config)

    def run(x, layers, rows, relative):
        contexts = _contexts(rows, relative, config)
        return stack.run_layers(
            lambda kind, x, layer: block(x, layer, contexts[kind]),
            x,
            layers,
            pattern=pattern,
            scan=config.scan_layers,
        )

    decodes = config.disentangled.mask_decoder and config.head.kind == "mlm"
    if mesh.size("layers") > 1:
        return _in_stages(run, x, inputs, rows, relative, config)
    if not decodes:
        return run(x, inputs, rows, relative)
    *earlier, last = inputs if isinstance(inputs, list) else tree.unstack(inputs)
    seen, outs = run(x, earlier, rows, relative)
    kind = pattern[(config.num_layers - 1) % len(pattern)]
    context = _contexts(rows, relative, config)[kind]
    absolute = embedding.embed_positions(params, rows.positions, x.shape[0], config)
    batch = None if absolute.shape[0] == 1 else "batch"
    x = disentangled.mask_decoder(
        lambda queries, seen: block(queries, last, context, seen)[0],
        mesh.place(absolute, (batch, *layers.stream_axes(x.shape[1])[1:])),
        seen,
        config,
    )
    return x, outs


def _in_stages(run, x, inputs, rows: Rows, relative, config) -> tuple[jax.Array, Any]:
    """Runs all blocks in the stages of a pipeline, in which every row keeps its number."""
    tokens = layers.HIDDEN[:2]
    by_row = rows._replace(
        positions=mesh.place(jnp.broadcast_to(rows.positions, x.shape[:2]), tokens),
        where=layers.Where(mesh.place(jnp.arange(x.shape[0], dtype=jnp.int32), tokens[:1])),
    )

    def body(x, layers, rows, shared):
        relative, positions = shared
        where = rows.where._replace(positions=positions)
        return run(x, layers, rows._replace(where=where), relative)

    shared = relative, rows.where.positions
    period = len(config.attention.pattern)
    return pipeline.run(body, x, inputs, by_row, shared, config.pipeline, period)


def _routing(outs) -> Routing:
    """The routing summed over all layers."""
    if isinstance(outs, list):
        return jax.tree.map(lambda *layers: sum(layers), *(out.routing for out in outs))
    return jax.tree.map(lambda layers: jnp.sum(layers, axis=0), outs.routing)
