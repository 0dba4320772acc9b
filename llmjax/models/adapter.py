"""The bottleneck behind attention or MLP that `peft.adapter` adds to blocks."""

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
    """The weights of one, or their declarations.

    Attributes:
        down: [D, R].
        down_bias: [R].
        up: [R, D]; zero at the start, as its bias is, so that step 0 equals the base model.
        up_bias: [D].
        norm: "scale" and "bias" [D] of a LayerNorm of what it reads; None: there is none.
        activation: a name in `mlp.ACTIVATIONS`.
        scale: of what it adds.
        reads: "output" of attention or MLP, or its "sum" with the residual stream, behind the norm
            that models with norms after the sum have there.
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
    """What attention or MLP add to the residual stream, h + scale · up(activation(down(norm y))).

    It comes last before the sum: behind dropout and the norm that some models have behind attention
    and MLP. Each device adapts the positions that it has of the stream.

    Args:
        adapter: its weights; None: h stays.
        x: the residual stream [B, S, D].
        added: h [B, S, D].
        after: the parameters of the norm behind the sum; None: there is none.
        config: the model's.

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
