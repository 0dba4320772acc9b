"""What is trained: one configuration for all fine-tuning methods."""

import dataclasses
from typing import Any, Literal

import jax

from llmjax import tree
from llmjax.checks import require_choices
from llmjax.models import ModelConfig
from llmjax.peft import adapter, freeze, ia3, lora, prefix, quantized, transform
from llmjax.peft.adapter import AdapterConfig
from llmjax.peft.ia3 import Ia3Config
from llmjax.peft.lora import LoraConfig
from llmjax.peft.prefix import PrefixConfig
from llmjax.spec import Tree

_OPTIONS = ("lora", "adapter", "ia3", "prefix")  # methods that add parameters, and their settings


@dataclasses.dataclass(frozen=True)
class MethodConfig:
    """The fine-tuning method and its settings.

    Attributes:
        name: full trains the model itself; any other method only trains the parameters that it
            adds, and the head if that is new.
        quantize: whether frozen projections of attention and MLPs, though not of experts, are
            stored in 8 or 4 bits (QLoRA); not with full.
        only: with full, a regular expression: only parameters whose path matches are trained; ""
            trains all.
        frozen: with full, a regular expression: parameters whose path matches are not trained.
        frozen_layers: with full, number of first layers that are not trained; neither are the
            embeddings below them.
        lora: settings of lora.
        adapter: settings of adapter.
        ia3: settings of ia3.
        prefix: settings of prefix.
    """

    name: Literal["full", "lora", "adapter", "ia3", "prefix"] = "full"
    quantize: Literal["none", "int8", "nf4"] = "none"
    only: str = ""
    frozen: str = ""
    frozen_layers: int = 0
    lora: LoraConfig = LoraConfig()
    adapter: AdapterConfig = AdapterConfig(dim=64)
    ia3: Ia3Config = Ia3Config()
    prefix: PrefixConfig = PrefixConfig(length=20)

    def __post_init__(self) -> None:
        require_choices(self, "peft")
        chosen = [name for name in ("only", "frozen", "frozen_layers") if getattr(self, name)]
        if len(chosen) > 1:
            raise ValueError(f"peft: {' and '.join(chosen)} are given; choose one of them")
        if chosen and self.name != "full":
            raise ValueError(
                f"peft.{chosen[0]} needs peft.name=full; {self.name} trains what it adds"
            )
        if self.quantize != "none" and self.name == "full":
            raise ValueError(
                f"peft.quantize={self.quantize}: quantized weights cannot be trained; choose "
                "peft.name=lora or another method that adds parameters"
            )
        ignored = [name for name in _OPTIONS if getattr(self, name) != getattr(MethodConfig, name)]
        if self.name == "full" and ignored:
            raise ValueError(
                f"peft.{ignored[0]} is set, but peft.name=full trains the model itself: choose "
                f"peft.name={ignored[0]}, or leave its settings out"
            )
        if self.frozen_layers < 0:
            raise ValueError(f"peft.frozen_layers={self.frozen_layers}: must not be negative")


def spec(declared: Tree, model: ModelConfig, config: MethodConfig) -> Tree:
    """A model's spec with the parameters that the method adds.

    Raises:
        ValueError: a setting (which is named) does not fit the model.
    """
    if config.quantize != "none":
        declared = quantized.spec(declared, config.quantize)
    if config.name == "lora":
        return lora.spec(declared, config.lora)
    if config.name == "ia3":
        return ia3.spec(declared, config.ia3)
    if config.name == "adapter":
        return adapter.spec(declared, model, config.adapter)
    if config.name == "prefix":
        return prefix.spec(declared, model, config.prefix)
    return declared


def trains(declared: Tree, config: MethodConfig, *, also: str = "") -> tree.Predicate | None:
    """A predicate for `tree.partition` that selects what is trained; None if everything is.

    Args:
        declared: from `spec`.
        config: method configuration.
        also: a regular expression for parameters that are always trained, such as a new head; ""
            for none.

    Raises:
        ValueError: a pattern matches nothing, or layers to be frozen are stacked.
    """
    picked: tree.Predicate
    if config.name != "full":
        picked = transform.trained(declared)
    elif config.only:
        picked = freeze.only(declared, config.only)
    elif config.frozen:
        picked = freeze.all_but(declared, config.frozen)
    elif config.frozen_layers:
        picked = freeze.first_layers(declared, config.frozen_layers)
    else:
        return None
    if not also:
        return picked
    extra = tree.matches(also)
    return lambda path, leaf: picked(path, leaf) or extra(path, leaf)


def adapt(params: Any, plain: Tree, declared: Tree, config: MethodConfig, key: jax.Array) -> Any:
    """A model's parameters with those that the method adds, drawn from a key.

    Step 0 equals the model, except for a prefix, which all queries see, and for rounding if weights
    are quantized.

    Args:
        params: the model's parameters; missing ones, such as a new head's, are drawn too.
        plain: the model's spec.
        declared: from `spec`.
        config: method configuration.
        key: key of the new parameters.
    """
    params = transform.add(params, plain, key)
    if config.quantize != "none":
        params, _ = quantized.quantize(params, plain, config.quantize)
    return transform.add(params, declared, key)
