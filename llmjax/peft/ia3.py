"""IA³: learned factors on keys, values and the inner activations of MLPs."""

import dataclasses
import re
from typing import Any

from jax.nn import initializers

from llmjax.peft import lora, names, targets
from llmjax.spec import Param, Tree
from llmjax.weights import Scaled, Side


@dataclasses.dataclass(frozen=True)
class Ia3Config:
    """Infused adapters by inhibiting and amplifying inner activations (Liu et al. 2022).

    Attributes:
        targets: regular expression, searched for in the paths of matrices; by default it matches
            key, value and MLP output projections.
        inputs: regular expression; targets whose path matches have their inputs multiplied, others
            their outputs.
    """

    targets: str = r"/attention/(key|value)$|/mlp/down$"
    inputs: str = r"/mlp/down$"

    def __post_init__(self) -> None:
        targets.require_pattern("ia3.targets", self.targets)
        targets.require_pattern("ia3.inputs", self.inputs)


def spec(declared: Tree, config: Ia3Config) -> Tree:
    """The spec with a `Scaled` in place of each target; factors are initialized to 1.

    Args:
        declared: the tree of `Param` of a model; weights may be quantized.
        config: options of IA³.

    Raises:
        ValueError: `targets` matches nothing, or a parameter that is not a matrix, already has an
            adapter, or is a table.
    """

    def change(path: str, node: Any, param: Param) -> Scaled:
        if param.table:
            raise ValueError(f"ia3.targets: {path} is a table; only projections are supported")
        first, behind = param.stacked, param.stacked + param.inputs
        side: Side = "inputs" if re.search(config.inputs, path) else "outputs"
        others = range(behind, len(param.shape)) if side == "inputs" else range(first, behind)
        factors = lora.small(param, others, initializers.ones, names.factors(param, side))
        return Scaled(node, factors, side)

    return targets.replace(declared, "ia3.targets", config.targets, change)
