"""IA³: keys, values and what is inside of MLPs, multiplied by learned factors."""

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
        targets: regular expression, searched for in the paths of matrices; by default it finds
            those of keys, of values, and out of MLPs.
        inputs: regular expression; of those targets whose path has it the inputs are multiplied,
            of others the outputs.
    """

    targets: str = r"/attention/(key|value)$|/mlp/down$"
    inputs: str = r"/mlp/down$"

    def __post_init__(self) -> None:
        targets.require_pattern("ia3.targets", self.targets)
        targets.require_pattern("ia3.inputs", self.inputs)


def spec(declared: Tree, config: Ia3Config) -> Tree:
    """The spec with a `Scaled` in place of each target; factors are 1 at the start.

    Args:
        declared: the tree of `Param` of a model; weights may be quantised.
        config: which.

    Raises:
        ValueError: `targets` finds nothing, what is no matrix or has an adapter, or a table.
    """

    def change(path: str, node: Any, param: Param) -> Scaled:
        if param.table:
            raise ValueError(f"ia3.targets: {path} is a table; name projections only")
        first, behind = param.stacked, param.stacked + param.inputs
        side: Side = "inputs" if re.search(config.inputs, path) else "outputs"
        others = range(behind, len(param.shape)) if side == "inputs" else range(first, behind)
        factors = lora.small(param, others, initializers.ones, names.factors(param, side))
        return Scaled(node, factors, side)

    return targets.replace(declared, "ia3.targets", config.targets, change)
