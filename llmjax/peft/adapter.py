"""Bottleneck adapters after attention and MLP (Houlsby et al. 2019)."""

import dataclasses
from typing import Any, Literal

from jax.nn import initializers

from llmjax.checks import require_at_least, require_choices
from llmjax.models import ModelConfig
from llmjax.models.adapter import Adapter
from llmjax.models.options import Activation
from llmjax.peft.blocks import Block, with_blocks
from llmjax.spec import Param


@dataclasses.dataclass(frozen=True)
class AdapterConfig:
    """x + h becomes x + h + scale · up(activation(down(norm y))) after attention and MLP.

    h is the output of attention or MLP, after dropout and the output norms of Gemma 2 and OLMo 2;
    y is h or x + h. This is the sequential bottleneck of AdapterHub's `adapters`: `houlsby` is its
    DoubleSeqBnConfig, `pfeiffer` its SeqBnConfig.

    Attributes:
        dim: R, width of the bottleneck.
        activation: activation in the bottleneck.
        norm: whether the adapter begins with a LayerNorm of its own. The chapter has one; Houlsby
            et al. train the model's own norms instead.
        scale: factor on the adapter's output.
        after: where adapters are: after "attention", after "mlp" (or experts), or both.
        reads: y: the "output" h, or the "sum" x + h, after BERT's norm of the sum.
    """

    dim: int
    activation: Activation = "relu"
    norm: bool = True
    scale: float = 1.0
    after: tuple[Literal["attention", "mlp"], ...] = ("attention", "mlp")
    reads: Literal["output", "sum"] = "output"

    def __post_init__(self) -> None:
        require_choices(self, "adapter")
        require_at_least(1, self, "adapter", ("dim",))
        if not self.scale:
            raise ValueError("adapter.scale=0: adapters would have no effect and no gradient")
        if not self.after or not {"attention", "mlp"} >= set(self.after):
            raise ValueError(
                f'adapter.after={self.after!r}: name "attention", "mlp", or both, in a tuple'
            )


def houlsby(dim: int) -> AdapterConfig:
    """Adapters after attention and MLP that read their outputs (Houlsby et al. 2019, figure 2)."""
    return AdapterConfig(dim, activation="silu", norm=False)


def pfeiffer(dim: int) -> AdapterConfig:
    """Adapters after the MLP that read its sum with x (Pfeiffer et al. 2021, figure 3)."""
    return AdapterConfig(dim, norm=False, after=("mlp",), reads="sum")


def spec(declared: Any, model: ModelConfig, config: AdapterConfig) -> Any:
    """A model's spec with adapters in every block: "attention_adapter", "mlp_adapter".

    The up projections are initialized to zero, so that step 0 equals the base model.

    Args:
        declared: the model's spec, from `models.spec` or another method of this package.
        model: model configuration.
        config: adapter options.

    Raises:
        ValueError: the model has adapters already.
    """
    adapter = _declare(model, config)

    def extend(block: Block) -> Block:
        new = {f"{name}_adapter": adapter for name in config.after}
        if found := sorted(new.keys() & block.keys()):
            raise ValueError(f"the model already has {', '.join(found)}: add adapters only once")
        return block | new

    return with_blocks(declared, model, extend)


def _declare(model: ModelConfig, config: AdapterConfig) -> Adapter:
    width, rank = model.embed_dim, config.dim
    small, zeros = initializers.normal(model.init_std), initializers.zeros

    def vector(size: int, init: initializers.Initializer = zeros) -> Param:
        return Param((size,), (None,), init, added=True)

    return Adapter(
        down=Param((width, rank), ("embed", None), small, inputs=1, added=True),
        down_bias=vector(rank),
        up=Param((rank, width), (None, "embed"), zeros, inputs=1, added=True),
        up_bias=vector(width),
        norm={"scale": vector(width, initializers.ones), "bias": vector(width)}
        if config.norm
        else None,
        activation=config.activation,
        scale=config.scale,
        reads=config.reads,
    )
