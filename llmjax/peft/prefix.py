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
    """P keys and values for every layer, that all queries see.

    As PREFIX_TUNING of PEFT 0.21 with models of `transformers`: keys are not rotated, and tokens
    have the positions from P on, those that are given too. But there a sliding window passes the
    prefix by; here every query sees it.

    Attributes:
        length: P.
        hidden_dim: M, width of an MLP that makes the prefixes of all layers from P embeddings, and
            that `folded` puts in their place after training (Li & Liang 2021, section 4.3; PEFT's
            prefix_projection, with M its encoder_hidden_size); 0 trains the prefixes themselves.
    """

    length: int
    hidden_dim: int = 0

    def __post_init__(self) -> None:
        require_at_least(1, self, "prefix", ("length",))
        require_at_least(0, self, "prefix", ("hidden_dim",))


def spec(declared: Any, model: ModelConfig, config: PrefixConfig) -> Any:
    """A model's declarations with prefixes: "prefix_key" and "prefix_value" in every attention.

    With `hidden_dim` instead "prefix", beside the layers. They are drawn small, PEFT's with a
    standard deviation of 1; to begin from a text, which Li & Liang found better (section 7.4), see
    `from_tokens`.

    Args:
        declared: the model's, which `models.spec` or another method of this package made.
        model: its config.
        config: of the prefixes.

    Raises:
        ValueError: DeBERTa's attention, which takes none; a model that has a prefix already, or no
            learned positions left.
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
            "prefix: DeBERTa's attention is by relative positions, of which a prefix has none; "
            "choose another method of fine-tuning"
        )
    blocks = declared["layers"]
    first = blocks[0] if isinstance(blocks, list) else blocks
    if "prefix" in declared or "prefix_key" in first["attention"]:
        raise ValueError("the model has a prefix already: add one only")
    if model.position == "learned" and config.length >= model.max_length:
        raise ValueError(
            f"prefix.length={config.length}: the model's {model.max_length} learned positions "
            "begin behind it, so none are left for tokens"
        )


def _reparametrisation(model: ModelConfig, config: PrefixConfig) -> dict[str, Param]:
    """Of `models.prefix`; its embeddings have the width that PEFT's have, K·C."""
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
    """Parameters with plain prefixes in the place of what makes them: for export and decoding."""
    return jax.jit(prefix.unfolded, static_argnums=1)(params, model)


def from_tokens(params: Any, tokens: jax.Array, model: ModelConfig) -> Any:
    """Parameters whose prefixes are the keys and values of a text (Li & Liang 2021, section 7.4).

    The model then does, with rotary or learned positions, what the base model does behind this
    text, as far as its windows reach that.

    Args:
        params: with plain prefixes of P tokens.
        tokens: int32 [P].
        model: the model's config, which must be causal.

    Raises:
        ValueError: a bidirectional model, no plain prefix, or another number of tokens.
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
    # As many rows as the mesh wants; all are alike.
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
    """Layers with what is new of each in the place of their prefixes, in these' precision."""

    def one(block, new):
        attention = block["attention"]
        rest = {name: value for name, value in attention.items() if name not in NAMES}
        cast = {name: value.astype(attention[name].dtype) for name, value in new.items()}
        return block | {"attention": rest | cast}

    if isinstance(layers, list):
        return [one(*both) for both in zip(layers, new, strict=True)]
    return one(layers, tree.stack(new))
