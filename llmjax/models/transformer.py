"""The transformer: its spec, and tokens to hidden states."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
from jax.nn import initializers

from llmjax import mesh, tree
from llmjax import spec as specs
from llmjax.kernels.flash_attention import Mask
from llmjax.models import families, layers, remat, stack
from llmjax.models.attention import KVCache, attention, attention_spec
from llmjax.models.config import ModelConfig
from llmjax.models.mlp import mlp, mlp_spec
from llmjax.spec import Param

Params = Any


def spec(config: ModelConfig) -> Any:
    """The tree of `Param` of a model."""
    normal = initializers.normal(config.init_std)
    table = Param((config.vocab_size, config.embed_dim), ("vocab", "embed"), normal)
    block = {
        "attention_norm": layers.norm_spec(config),
        "attention": attention_spec(config),
        "mlp_norm": layers.norm_spec(config),
        "mlp": mlp_spec(config),
    }
    declared = {
        "embedding": table,
        "layers": _layers(block, config),
        "final_norm": layers.norm_spec(config),
    }
    if config.position == "learned":
        shape = (config.max_length, config.embed_dim)
        declared["positions"] = Param(shape, (None, "embed"), normal)
    if not config.tied:
        declared["head"] = table
    return families.name_params(declared, config.family)


def _layers(block: Any, config: ModelConfig) -> Any:
    """The blocks stacked, for a loop over them; a list where they are unrolled.

    Slicing a stack, and stacking the gradients again, would copy every weight twice a step.
    """
    if config.scan_layers:
        return specs.map_params(lambda param: param.stack(config.num_layers), block)
    return [block] * config.num_layers


def apply(
    params: Params,
    tokens: jax.Array,
    config: ModelConfig,
    *,
    segment_ids: jax.Array | None = None,
    positions: jax.Array | None = None,
    cache: KVCache | None = None,
    key: jax.Array | None = None,
) -> tuple[jax.Array, KVCache | None]:
    """Tokens to the hidden states that the heads read.

    Args:
        params: as `spec` declares; `params["layers"]` may also be a list of L trees.
        tokens: int32 [B, S].
        config: the model's.
        segment_ids: int32 [B, S]; tokens attend within equal ones, 0 is padding. With a cache:
            padding must be on the right, and is not counted.
        positions: int32 [B, S]; by default 0, 1, … from the row's start, or behind its cache.
        cache: from `empty_cache` or an earlier call; the tokens are appended to it.
        key: for dropout; None switches it off.

    Returns:
        Hidden states [B, S, D], after the final norm, and the cache with the tokens in it.

    Raises:
        ValueError: a sequence longer than the learned positions or the cache.
    """
    length = tokens.shape[1]
    longest = length if cache is None else cache.capacity
    if config.position == "learned" and longest > config.max_length:
        raise ValueError(
            f"{longest} tokens exceed the {config.max_length} learned positions of the model"
        )
    offset = None if cache is None else cache.length
    if positions is None:
        start = jnp.zeros((1, 1), jnp.int32) if offset is None else offset[:, None]
        positions = start + jnp.arange(length, dtype=jnp.int32)[None]
    x = _embed(params, tokens, positions, config)
    keys = None if key is None else jax.random.split(key, config.num_layers + 1)
    x = layers.dropout(x, config.dropout.embedding, None if keys is None else keys[-1])
    mask = Mask(None if offset is not None else segment_ids, offset)
    tables = layers.rope_tables(positions, config) if config.position == "rope" else None

    block = remat.at_level(config, "full")(functools.partial(_block, config))

    def layer_by_layer(x, layer):
        return block(x, layer, mask, tables)

    inputs = _per_layer(params["layers"], cache, keys, config)
    x, caches = stack.run_layers(layer_by_layer, x, inputs, scan=config.scan_layers)
    hidden = layers.norm(params["final_norm"], x, config)
    if cache is None:
        return hidden, None
    added = length if segment_ids is None else jnp.sum(segment_ids != 0, axis=1, dtype=jnp.int32)
    return hidden, KVCache(caches, cache.length + added)


def _embed(params, tokens, positions, config) -> jax.Array:
    # The width is gathered first, so that the look-up crosses the vocabulary's devices only.
    table = mesh.place(jnp.asarray(params["embedding"], config.compute_dtype), ("vocab", None))
    x = mesh.sharded(table.at[tokens].get, layers.HIDDEN)()
    if config.position == "learned":
        rows = jnp.asarray(params["positions"], config.compute_dtype)
        axes = layers.HIDDEN if positions.shape[0] == tokens.shape[0] else (None, None, None)
        x = x + mesh.sharded(rows.at[positions].get, axes)()
    return x


def _per_layer(stacked, cache, keys, config) -> Any:
    """What each block needs: its parameters, cache and dropout key.

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


def _block(config, x, layer, mask, rope_tables):
    """A pre-norm block: x + attention(norm x), then x + mlp(norm x)."""
    params, key = layer["params"], layer["key"]
    keys = [None] * 3 if key is None else list(jax.random.split(key, 3))
    mixed, cache = attention(
        params["attention"],
        params["attention_norm"],
        x,
        config,
        mask=mask,
        rope_tables=rope_tables,
        cache=layer["cache"],
        key=keys[0],
    )
    x = x + layers.dropout(mixed, config.dropout.hidden, keys[1])
    inner = mlp(params["mlp"], params["mlp_norm"], x, config)
    return x + layers.dropout(inner, config.dropout.hidden, keys[2]), cache
