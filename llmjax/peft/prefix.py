"""Prefix tuning (Li & Liang 2021): trained keys and values before all tokens, in every layer."""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
from jax.nn import initializers

from llmjax import mesh, models, tree
from llmjax.checks import require_at_least
from llmjax.models import ModelConfig, prefix
from llmjax.models.attention import cached, require_causal
from llmjax.models.prefix import NAMES
from llmjax.peft.blocks import Block, with_blocks
from llmjax.spec import Param


@dataclasses.dataclass(frozen=True)
class PrefixConfig:
    """P keys and values in every layer that all queries see.

    Like PREFIX_TUNING in PEFT 0.21 with models of `transformers`: keys are not rotated, and token
    positions, even given ones, are shifted by P. But there a sliding window excludes the prefix,
    while here every query sees it.

    Attributes:
        length: P.
        hidden_dim: M, width of an MLP that computes the prefixes of all layers from P embeddings;
            `folded` replaces it by its results after training (Li & Liang 2021, section 4.3; PEFT's
            prefix_projection, with M its encoder_hidden_size). 0 trains the prefixes themselves.
    """

    length: int
    hidden_dim: int = 0

    def __post_init__(self) -> None:
        require_at_least(1, self, "prefix", ("length",))
        require_at_least(0, self, "prefix", ("hidden_dim",))


def spec(declared: Any, model: ModelConfig, config: PrefixConfig) -> Any:
    """A model's spec with prefixes: "prefix_key" and "prefix_value" in every layer's attention.

    With `hidden_dim` it has an entry "prefix" beside the layers instead. Prefixes are initialized
    with the model's `init_std`, where PEFT uses a standard deviation of 1; to initialize them from
    a text, which Li & Liang found better (section 7.4), see `from_tokens`.

    Args:
        declared: the model's spec, from `models.spec` or another method of this package.
        model: model configuration.
        config: prefix options.

    Raises:
        ValueError: the model is a DeBERTa, already has a prefix, or has no learned positions left.
    """
    _check(declared, model, config)
    if config.hidden_dim:
        return declared | {"prefix": _reparametrisation(model, config)}
    shape = (model.kv_heads, config.length, model.channels)
    small = initializers.normal(model.init_std)
    param = Param(shape, ("kv_heads", None, None), small, added=True)
    new = dict.fromkeys(NAMES, param)

    def extend(block: Block) -> Block:
        return block | {"attention": block["attention"] | new}

    return with_blocks(declared, model, extend)


def _check(declared: Any, model: ModelConfig, config: PrefixConfig) -> None:
    if model.disentangled.terms:
        raise ValueError(
            "prefix: DeBERTa's attention uses relative positions, which a prefix does not have; "
            "choose another fine-tuning method"
        )
    blocks = declared["layers"]
    first = blocks[0] if isinstance(blocks, list) else blocks
    if "prefix" in declared or "prefix_key" in first["attention"]:
        raise ValueError("the model already has a prefix: add only one")
    if model.position == "learned" and config.length >= model.max_length:
        raise ValueError(
            f"prefix.length={config.length}: it uses up the model's {model.max_length} learned "
            "positions, so none are left for tokens"
        )


def _reparametrisation(model: ModelConfig, config: PrefixConfig) -> dict[str, Param]:
    """The reparametrisation of `models.prefix`; as in PEFT, its embeddings have width K·C."""
    width, inner = model.kv_heads * model.channels, config.hidden_dim
    shape = (model.num_layers, 2, model.kv_heads, model.channels)
    axes = (None, None, "kv_heads", None)
    small, zeros = initializers.normal(model.init_std), initializers.zeros
    of_embeddings, of_hidden = initializers.normal(1.0), initializers.lecun_normal()
    declared = {
        "embedding": Param((config.length, width), (None, None), of_embeddings),
        "hidden": Param((width, inner), (None, None), of_hidden, inputs=1),
        "hidden_bias": Param((inner,), (None,), zeros),
        "out": Param((inner, *shape), ("outer_embed", *axes), small, inputs=1),
        "out_bias": Param(shape, axes, zeros),
    }
    return {name: dataclasses.replace(param, added=True) for name, param in declared.items()}


def folded(params: Any, model: ModelConfig) -> Any:
    """Replaces a reparametrisation by the prefixes it computes, for export and decoding."""
    return jax.jit(prefix.unfolded, static_argnums=1)(params, model)


def from_tokens(params: Any, tokens: jax.Array, model: ModelConfig) -> Any:
    """Sets prefixes to the keys and values of a text (Li & Liang 2021, section 7.4).

    With rotary or learned positions, the model then behaves like the base model after this text,
    within the reach of its windows.

    Args:
        params: parameters with plain prefixes of P tokens.
        tokens: int32 [P].
        model: model configuration, which must be causal.

    Raises:
        ValueError: the model is bidirectional, has no plain prefix, or P is another number.
    """
    require_causal(model)
    count = 0 if "prefix" in params else prefix.length(params)
    if not count or tokens.shape != (count,):
        raise ValueError(
            f"prefix.from_tokens: {tokens.shape} tokens for a plain prefix of {count}; give (P,) "
            "tokens and parameters by `prefix.spec` with hidden_dim=0"
        )

    pairs = _run(params, jnp.asarray(tokens, jnp.int32), model)
    return params | {"layers": _replaced(params["layers"], pairs)}


@functools.partial(jax.jit, static_argnums=2)
def _run(params, tokens, model) -> list[Block]:
    """The keys and values of all layers for tokens [P] without a prefix."""
    # One row per device that splits the batch; all are equal.
    rows = jnp.broadcast_to(tokens, (mesh.size("batch"), len(tokens)))
    base = params | {"layers": _replaced(params["layers"], [{}] * model.num_layers)}
    empty = models.empty_cache(model, *rows.shape)
    _, filled = models.apply(base, mesh.place(rows, ("batch", None)), model, cache=empty)
    assert filled is not None  # one was given
    pairs = []
    for layer in filled.layers:
        first = (mesh.place(x, (None, "kv_heads", None, None))[0] for x in cached(layer))
        pairs.append(dict(zip(NAMES, first, strict=True)))
    return pairs


def _replaced(layers: Any, new: list[Block]) -> Any:
    """Layers with new prefixes, cast to the dtype of the old ones."""

    def one(block, new):
        attention = block["attention"]
        rest = {name: value for name, value in attention.items() if name not in NAMES}
        cast = {name: value.astype(attention[name].dtype) for name, value in new.items()}
        return block | {"attention": rest | cast}

    if isinstance(layers, list):
        return [one(*both) for both in zip(layers, new, strict=True)]
    return one(layers, tree.stack(new))
