"""Names and layouts of parameters in Hugging Face checkpoints."""

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

# nn.Linear stores weights as [out, in], with heads and channels in one axis.
INTO_HEADS = "(h c) d -> d h c"
OUT_OF_HEADS = "d (h c) -> h c d"


@dataclasses.dataclass(frozen=True)
class Family:
    """The parameter names and heads of a family's checkpoints.

    Attributes:
        names: names of all parameters except the head's.
        heads: kind of head → its configuration and the names of its parameters.
        prefix: prefix of names outside the head.
        prefixes: kind of head → prefix, if checkpoints with that head use another one.
        one_activation: kinds of head whose dense layer uses the activation of the MLPs.
    """

    names: Names
    heads: Mapping[str, tuple[Head, Names]]
    prefix: str
    prefixes: Mapping[str, str] = dataclasses.field(default_factory=dict)
    one_activation: tuple[str, ...] = ()


def linear(
    ours: str, theirs: str, layout: str, bias: str, part: tuple[int, int, int] | None = None
) -> Names:
    """Names of a projection and its bias, `theirs`.weight and .bias, with their layouts."""
    rest = () if part is None else (part,)
    return {
        ours: (f"{theirs}.weight", layout, *rest),
        f"{ours}_bias": (f"{theirs}.bias", bias, *rest),
    }


def norm(ours: str, theirs: str, layout: str = "d -> d") -> Names:
    """Names of a norm: `theirs`.weight and .bias."""
    return {
        f"{ours}/scale": (f"{theirs}.weight", layout),
        f"{ours}/bias": (f"{theirs}.bias", layout),
    }


def name_params(spec: Any, config: ModelConfig, family: Family) -> Any:
    """The spec with the family's checkpoint names and layouts filled in.

    A parameter that the family lacks, such as a bias in Llama, stays unnamed: the model can be
    trained, but export raises an error.
    """
    kind = config.head.kind
    _, of_head = family.heads.get(kind, (None, {}))
    names = {**family.names, **of_head}
    prefix = family.prefixes.get(kind, family.prefix)

    def one(path, param):
        number = re.match(r"layers/(\d+)/", path)  # of an unstacked layer
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
