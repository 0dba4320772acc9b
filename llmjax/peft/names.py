"""Names and layouts in PEFT's files for added parameters, derived from those of their weight."""

import re

from llmjax.spec import Param
from llmjax.weights import Side

PREFIX = "base_model.model."  # PEFT's wrappers around a model

# (hf, layout, part) of a `Param`
Name = tuple[str, str, tuple[int, int, int]]
NAMELESS: Name = ("", "", (0, 1, -1))


def factor(param: Param, which: str) -> Name:
    """The name of factor "a" or "b" of a weight's correction.

    PEFT multiplies by A [R, inputs] first and by B [outputs, R] second. For an input table, A is
    the factor of the rows; for an output table, that of the columns.
    """
    found = _sides(param)
    if found is None:
        return NAMELESS
    module, rows, columns = found
    first = which == ("b" if param.table == "output" else "a")
    kind = "embedding_" if param.table == "input" else ""
    last = "" if kind else ".weight"
    hf = f"{module}.lora_{kind}{'A' if first else 'B'}{last}"
    group = rows if which == "a" else columns
    theirs = f"r {group}" if first else f"{group} r"
    letters = group.strip("()")
    ours = f"{letters} r" if which == "a" else f"r {letters}"
    return hf, f"{theirs} -> {ours}", NAMELESS[2] if first else _outputs(param)


def magnitude(param: Param) -> Name:
    """The name of the magnitudes of a projection's outputs."""
    found = _sides(param)
    if found is None:
        return NAMELESS
    module, _, columns = found
    ours = f"{'1 ' * param.inputs}{columns.strip('()')}"
    return f"{module}.lora_magnitude_vector", f"{columns} -> {ours}", _outputs(param)


def factors(param: Param, side: Side) -> Name:
    """The name of IA³'s factors of a projection's inputs or outputs."""
    found = _sides(param)
    if found is None:
        return NAMELESS
    module, rows, columns = found
    if side == "inputs":
        ones = " 1" * (len(param.shape) - param.stacked - param.inputs)
        return f"{module}.ia3_l", f"1 {rows} -> {rows.strip('()')}{ones}", NAMELESS[2]
    ones = "1 " * param.inputs
    return f"{module}.ia3_l", f"{columns} 1 -> {ones}{columns.strip('()')}", _outputs(param)


def transposed(param: Param) -> bool:
    """Whether a projection is stored as [inputs, outputs]: PEFT's fan_in_fan_out."""
    found = _sides(param)
    return found is not None and not param.table and _groups(param)[0] == found[1]


def _sides(param: Param) -> tuple[str, str, str] | None:
    """PEFT's module, and the groups of axes in its matrix that are our rows and columns.

    None for weights that PEFT's files cannot hold: experts, which it stacks, and convolutions.
    """
    if not param.hf.endswith(".weight") or param.hf.count("{}") > 1:
        return None
    groups, letters = _groups(param), param.layout.split("->")[1].split()
    rows, columns = letters[: param.inputs], letters[param.inputs :]
    by_letters = {tuple(group.strip("()").split()): group for group in groups}
    if len(groups) != 2 or set(by_letters) != {tuple(rows), tuple(columns)}:
        return None
    module = PREFIX + param.hf.removesuffix(".weight")
    return module, by_letters[tuple(rows)], by_letters[tuple(columns)]


def _groups(param: Param) -> list[str]:
    return re.findall(r"\(.*?\)|\w+", param.layout.split("->")[0])


def _outputs(param: Param) -> tuple[int, int, int]:
    """The part of a fused tensor's outputs, which come first in PEFT's tensors."""
    index, count, _ = param.part
    return (index, count, 0) if count > 1 else NAMELESS[2]
