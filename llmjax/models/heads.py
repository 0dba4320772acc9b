"""Output heads: functions of hidden states.

Sequence heads read one state per row, so a row holds one sequence; `segment_rewards` reads one
state per segment. `segment_ids` (0 is padding) determine which state that is, so padding may be
left, right or absent.
"""

from typing import Any

import jax
import jax.numpy as jnp
from jax.nn import initializers

from llmjax import lookup, mesh
from llmjax.models import layers
from llmjax.models.config import ModelConfig
from llmjax.models.mlp import ACTIVATIONS
from llmjax.spec import Param
from llmjax.weights import Weight, einsum, scaled_bias

VOCAB = ("batch", "sequence", "vocab")  # logical axes of logits [B, S, V]
SEQUENCE_KINDS = ("classification", "reward")  # one output per row


def head_spec(config: ModelConfig) -> Any:
    """The declaration of `params["head"]`: a tree of `Param`, one [V, D] for kind lm, or None.

    Raises:
        ValueError: the head does not fit the embedding width.
    """
    head = config.head
    if head.kind == "lm":
        return _lm_spec(config)
    spec: dict[str, Any] = {}
    if head.dense:
        width = config.table_dim if head.kind == "mlm" else config.embed_dim
        spec |= _dense_spec(config, width)
        if head.norm:
            spec["norm"] = layers.norm_spec(config, (width,))
    if head.kind == "mlm":
        spec |= _vocabulary_spec(config)
    elif head.kind != "none":
        spec |= _linear_spec(config, _outputs(config), bias=head.bias)
    if head.next_sentence:
        spec["pooler"] = _dense_spec(config, config.embed_dim)
        spec["next_sentence"] = _linear_spec(config, 2, bias=True)
    return spec or None


def _lm_spec(config: ModelConfig) -> Param | None:
    if config.tied and config.table_dim != config.embed_dim:
        raise ValueError(
            f"model.tied=True: embeddings of width {config.table_dim} cannot be the head for "
            f"hidden states of width {config.embed_dim}; leave embedding.dim at 0, or do not tie"
        )
    return None if config.tied else _table(config, config.embed_dim)


def _vocabulary_spec(config: ModelConfig) -> dict[str, Param]:
    if config.table_dim != config.embed_dim and not config.head.dense:
        raise ValueError(
            f"head.dense=False: the dense layer is needed to project hidden states of width "
            f"{config.embed_dim} to the embeddings' width {config.table_dim}"
        )
    spec = {} if config.tied else {"out": _table(config, config.table_dim)}
    if config.head.bias:
        spec["bias"] = Param((config.vocab_size,), ("vocab",), initializers.zeros)
    return spec


def _table(config: ModelConfig, width: int) -> Param:
    normal = initializers.normal(config.init_std)
    shape, axes = (config.vocab_size, width), ("vocab", "outer_embed")
    return Param(shape, axes, normal, inputs=1, table="output")


def _dense_spec(config: ModelConfig, width: int) -> dict[str, Param]:
    normal = initializers.normal(config.init_std)
    shape, axes = (config.embed_dim, width), ("outer_embed", None)
    spec = {"dense": Param(shape, axes, normal, inputs=1)}
    if config.bias == "all":
        spec["dense_bias"] = Param((width,), (None,), initializers.zeros)
    return spec


def _linear_spec(config: ModelConfig, outputs: int, *, bias: bool) -> dict[str, Param]:
    normal = initializers.normal(config.init_std)
    shape, axes = (config.embed_dim, outputs), ("outer_embed", None)
    spec = {"out": Param(shape, axes, normal, inputs=1)}
    if bias:
        spec["out_bias"] = Param((outputs,), (None,), initializers.zeros)
    return spec


def _outputs(config: ModelConfig) -> int:
    """N, outputs per sequence or token: the labels, start and end, or one."""
    if config.head.kind in ("classification", "tokens"):
        return config.head.labels
    return 2 if config.head.kind == "span" else 1


def lm_weight(params: Any, config: ModelConfig) -> Weight:
    """The output table [V, D] of an lm or mlm head: the embeddings when tied.

    For an mlm head, it is as wide as the embeddings.
    """
    if config.tied:
        return params["embedding"]
    return params["head"]["out"] if config.head.kind == "mlm" else params["head"]


def logits(
    params: Any,
    hidden: jax.Array,
    config: ModelConfig,
    *,
    segment_ids: jax.Array | None = None,
    key: jax.Array | None = None,
) -> jax.Array:
    """Applies the model's head to hidden states; the result is float32.

    Args:
        params: model parameters.
        hidden: [B, S, D]; for lm and mlm, S may be a subset of the rows' positions.
        config: model configuration.
        segment_ids: int32 [B, S], 0 is padding; no padding by default. Only sequence heads read
            it. A row of only padding has finite, meaningless logits.
        key: key for dropout before the output, in heads other than lm and mlm; None disables it.

    Returns:
        [B, S, V] for lm and mlm, [B, S] for rtd (logit of "replaced") and value, [B, N] for
        classification, [B, S, N] for tokens, [B, S, 2] for span (start, end), and [B] for reward.

    Raises:
        ValueError: the model has no head.
    """
    kind = config.head.kind
    if kind == "none":
        raise ValueError("head.kind=none: the model has no head to compute logits with; choose one")
    if kind in ("lm", "mlm"):
        return _vocabulary_logits(params, hidden, config)
    if kind in SEQUENCE_KINDS:
        hidden = _pool(hidden, segment_ids, config.head.pool)
    out = _outputs_of(params["head"], hidden, config, key)
    return out[:, 0] if kind in SEQUENCE_KINDS else out


def segment_rewards(
    params: Any,
    hidden: jax.Array,
    config: ModelConfig,
    segment_ids: jax.Array,
    count: int,
    *,
    key: jax.Array | None = None,
) -> tuple[jax.Array, jax.Array]:
    """A score for each segment of a row, from a head of kind reward.

    Args:
        params: model parameters.
        hidden: [B, S, D].
        config: model configuration.
        segment_ids: int32 [B, S]: 1 to K, anywhere in the row; 0 is padding.
        count: K.
        key: key for dropout before the output; None disables it.

    Returns:
        Float32 scores [B, K], that of segment k + 1 at index k, and bool [B, K], whether the
        segment exists; the scores of absent segments are meaningless.

    Raises:
        ValueError: the model has another head.
    """
    if config.head.kind != "reward":
        raise ValueError(
            f"segment_rewards needs a model with head.kind=reward, not {config.head.kind}"
        )
    there = jnp.asarray(segment_ids)[..., None] == jnp.arange(1, count + 1)
    states = _pool_each(hidden, there, config.head.pool)
    return _outputs_of(params["head"], states, config, key), jnp.any(there, axis=1)


def _outputs_of(head: Any, x: jax.Array, config: ModelConfig, key: jax.Array | None) -> jax.Array:
    """Applies a linear head to states [B, S, D]: [B, S, N], or [B, S] for scalar heads."""
    x = _transform(head, x, config)
    x = layers.dropout(x, config.dropout.classifier, key, axes=layers.hidden_axes(x))
    out = _capped(_linear(head, "out", x), config)
    return out[..., 0] if config.head.kind in ("reward", "rtd", "value") else out


def _vocabulary_logits(params: Any, hidden: jax.Array, config: ModelConfig) -> jax.Array:
    x = mlm_states(params, hidden, config) if config.head.kind == "mlm" else hidden
    out = einsum("bsd,vd->bsv", x, lm_weight(params, config), VOCAB, wide=True)
    if config.head.kind == "mlm" and config.head.bias:
        out = out + params["head"]["bias"].astype(out.dtype)
    return _capped(out, config)


def mlm_states(params: Any, hidden: jax.Array, config: ModelConfig) -> jax.Array:
    """The mlm head's states before `lm_weight`: [B, S, D] to the embeddings' width."""
    # States gathered at some positions are not split, but the products with them are.
    hidden = mesh.place(hidden, layers.hidden_axes(hidden))
    return _transform(params.get("head"), hidden, config)


def pooled(
    params: Any, hidden: jax.Array, config: ModelConfig, *, segment_ids: jax.Array | None = None
) -> jax.Array:
    """BERT's pooler (Devlin et al. 2019, section 3.1): one state per row, [B, D].

    Args:
        params: parameters of a model with `head.next_sentence`, or with head kind none and a dense
            layer.
        hidden: [B, S, D].
        config: model configuration.
        segment_ids: int32 [B, S], 0 is padding; no padding by default.

    Raises:
        ValueError: the model has no pooler.
    """
    head = config.head
    if head.next_sentence:
        states = _linear(params["head"]["pooler"], "dense", _pool(hidden, segment_ids, "first"))
        return jnp.tanh(states)[:, 0].astype(hidden.dtype)
    if head.kind != "none" or not head.dense:
        raise ValueError(
            f"head.kind={head.kind}: the model has no pooler; set head.next_sentence, or "
            "head.kind=none with head.dense"
        )
    return _transform(params["head"], _pool(hidden, segment_ids, head.pool), config)[:, 0]


def _transform(head: Any, x: jax.Array, config: ModelConfig) -> jax.Array:
    """norm(activation(dense x)), with the layers that the head has."""
    if not config.head.dense:
        return x
    x = ACTIVATIONS[config.head.activation](_linear(head, "dense", x)).astype(x.dtype)
    return layers.norm(head.get("norm"), x, config)


def _linear(params: Any, name: str, x: jax.Array) -> jax.Array:
    """x [B, S, D] times a weight plus its bias, in float32."""
    out = einsum("bsd,de->bse", x, params[name], layers.hidden_axes(x), wide=True)
    bias = params.get(f"{name}_bias")
    return out if bias is None else out + scaled_bias(params[name], bias).astype(out.dtype)


def _capped(x: jax.Array, config: ModelConfig) -> jax.Array:
    cap = config.head.cap
    return cap * jnp.tanh(x / cap) if cap else x


def _wide(x: jax.Array) -> jnp.dtype:
    return jnp.promote_types(x.dtype, jnp.float32)


def _pool(x: jax.Array, segment_ids: jax.Array | None, how: str) -> jax.Array:
    """The pooled state of each row, [B, 1, D]; padding is skipped on either side."""
    if segment_ids is not None:
        return _pool_each(x, (jnp.asarray(segment_ids) != 0)[..., None], how)
    x = mesh.place(x, ("batch", None, None))
    if how == "mean":
        return jnp.mean(x, axis=1, keepdims=True, dtype=_wide(x)).astype(x.dtype)
    return x[:, -1:] if how == "last" else x[:, :1]


def _pool_each(x: jax.Array, there: jax.Array, how: str) -> jax.Array:
    """The pooled states [B, K, D] of K sets of tokens per row, given as masks [B, S, K]."""
    x, there = (mesh.place(array, ("batch", None, None)) for array in (x, there))
    if how == "mean":
        weights = there.astype(_wide(x))
        weights = weights / jnp.maximum(jnp.sum(weights, axis=1, keepdims=True), 1.0)
        return jnp.einsum("bsd,bsk->bkd", x.astype(weights.dtype), weights).astype(x.dtype)
    at = jnp.argmax(there, axis=1)
    if how == "last":
        at = jnp.max(jnp.where(there, jnp.arange(x.shape[1])[:, None], 0), axis=1)
    return lookup.gather_positions(x, at)
