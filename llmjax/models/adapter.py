"""The bottleneck adapter that `peft.adapter` adds to a block's attention or MLP."""

from typing import Any, Literal

import jax
from flax import struct

from llmjax.models import layers, remat
from llmjax.models.config import ModelConfig
from llmjax.models.mlp import ACTIVATIONS
from llmjax.weights import einsum

NORM_EPSILON = 1e-5
PLACES = ("attention_adapter", "mlp_adapter")  # names in a block


@struct.dataclass
class Adapter:
    """The weights of an adapter, or their declarations.

    Attributes:
        down: [D, R].
        down_bias: [R].
        up: [R, D]; initialized to zero, like its bias, so that step 0 equals the base model.
        up_bias: [D].
        norm: "scale" and "bias" [D] of a LayerNorm on the adapter's input; None for no norm.
        activation: a name in `mlp.ACTIVATIONS`.
        scale: factor on the adapter's output.
        reads: "output", that of attention or MLP, or "sum", that output plus the residual stream
            (in post-norm models, after the norm).
    """

    down: Any
    down_bias: Any
    up: Any
    up_bias: Any
    norm: dict[str, Any] | None
    activation: str = struct.field(pytree_node=False)
    scale: float = struct.field(pytree_node=False)
    reads: Literal["output", "sum"] = struct.field(pytree_node=False)


def adapted(
    adapter: Adapter | None,
    x: jax.Array,
    added: jax.Array,
    after: dict[str, Any] | None,
    config: ModelConfig,
) -> jax.Array:
    """The adapted update of the residual stream, h + scale · up(activation(down(norm y))).

    The adapter runs last before the residual addition: after dropout, and after the output norm of
    models that have one. Each device adapts its own positions of the stream.

    Args:
        adapter: the adapter's weights; None returns h unchanged.
        x: the residual stream [B, S, D].
        added: h [B, S, D], the output of attention or MLP.
        after: parameters of the norm after the residual addition; None for no norm.
        config: model configuration.

    Returns:
        [B, S, D].
    """
    if adapter is None:
        return added
    axes = layers.stream_axes(x.shape[1])

    def correction(read, adapter, after):
        seen = layers.norm(after, sum(read), config)
        if adapter.norm is not None:
            seen = layers.normalize(adapter.norm, seen, "layernorm", NORM_EPSILON)
        inner = einsum("bsd,dr->bsr", seen, adapter.down, axes)
        inner = ACTIVATIONS[adapter.activation](inner + adapter.down_bias.astype(inner.dtype))
        out = einsum("bsr,rd->bsd", inner, adapter.up, axes)
        return adapter.scale * (out + adapter.up_bias.astype(out.dtype))

    read, after = ((x, added), after) if adapter.reads == "sum" else ((added,), None)
    return added + remat.at_level(config, "dots")(correction)(read, adapter, after)
