"""From our parameters to names and layouts in Hugging Face checkpoints."""

import dataclasses
import re
from collections.abc import Mapping
from typing import Any

from llmjax import tree
from llmjax.models.config import ModelConfig
from llmjax.models.options import Head
from llmjax.spec import is_param

# path here → (name there, layout there -> here[, Param.part])
Names = dict[str, tuple]

# nn.Linear stores what it maps to before what it maps from; heads and channels are one axis.
INTO_HEADS = "(h c) d -> d h c"
OUT_OF_HEADS = "d (h c) -> h c d"


@dataclasses.dataclass(frozen=True)
class Family:
    """How a family's checkpoints name parameters, and which heads they have.

    Attributes:
        names: of all but the head.
        heads: kind of head → what it is made of, and the names of its parameters.
        prefix: of the names of the model without its head.
        prefixes: kind of head → prefix where checkpoints with that head have another.
        one_activation: whether an mlm head's dense layer has the activation of the MLPs.
    """

    names: Names
    heads: Mapping[str, tuple[Head, Names]]
    prefix: str
    prefixes: Mapping[str, str] = dataclasses.field(default_factory=dict)
    one_activation: bool = False


def linear(
    ours: str, theirs: str, layout: str, bias: str, part: tuple[int, int, int] | None = None
) -> Names:
    """A projection and its bias, `theirs`.weight and .bias, with the layout of each."""
    rest = () if part is None else (part,)
    return {
        ours: (f"{theirs}.weight", layout, *rest),
        f"{ours}_bias": (f"{theirs}.bias", bias, *rest),
    }


def norm(ours: str, theirs: str, layout: str = "d -> d") -> Names:
    """A norm: `theirs`.weight and .bias."""
    return {
        f"{ours}/scale": (f"{theirs}.weight", layout),
        f"{ours}/bias": (f"{theirs}.bias", layout),
    }


def name_params(spec: Any, config: ModelConfig, family: Family) -> Any:
    """The spec with the family's checkpoint names and layouts filled in.

    A parameter that the family does not have (a bias of a Llama, say) stays nameless: the model
    trains, and export says that it has no place for it.
    """
    kind = config.head.kind
    _, of_head = family.heads.get(kind, (None, {}))
    names = {**family.names, **of_head}
    prefix = family.prefixes.get(kind, family.prefix)

    def one(path, param):
        number = re.match(r"layers/(\d+)/", path)  # of a layer that is not stacked with the others
        path = re.sub(r"^layers/\d+/", "layers/", path)
        if path not in names:
            return param
        hf, layout, *part = names[path]
        if hf.startswith(family.prefix):
            hf = prefix + hf.removeprefix(family.prefix)
        hf = hf.replace("{}", number[1], 1) if number else hf
        return dataclasses.replace(
            param, hf=hf, layout=layout, part=part[0] if part else param.part
        )

    return tree.map_with_path(one, spec, is_leaf=is_param)
