"""Corrections of projections that a family's checkpoints fuse into one tensor, for PEFT's files.

For parts i with corrections a_i b_i, the fused correction is [a_1 a_2 …] times the block diagonal
of the b_i: its rank is the sum of theirs. When read back, each part gets all of A and its rows of
B.
"""

import collections
import dataclasses
from typing import Any

import jax
import numpy as np

from llmjax import tree
from llmjax.hf import state
from llmjax.hf.writing import LazyTensor
from llmjax.peft import names, targets
from llmjax.spec import Param, Tree, is_param, map_params
from llmjax.weights import Dora, Lora

# Name of PEFT's module → (rank, scale) of its fused correction.
Joined = dict[str, tuple[int, float]]


@dataclasses.dataclass(frozen=True)
class _Part:
    """One of `count` parts of a module: its index, its scale, and the names of its factors."""

    index: int
    count: int
    scale: float
    a: str
    b: str


def tensors(spec: Tree, added: Any) -> tuple[dict[str, LazyTensor], Joined]:
    """The tensors that methods added, by PEFT's names.

    Args:
        spec: the adapted spec.
        added: from `extract`.

    Returns:
        The tensors, and the fused corrections among them.

    Raises:
        ValueError: a parameter has no name in PEFT; only some parts of a fused tensor have factors
            or magnitudes.
    """
    _require_whole(spec)
    parts: dict[str, list[_Part]] = collections.defaultdict(list)

    def mark(node: Any) -> Any:
        """Gives the factors of each part names of their own."""
        if isinstance(node, Dora):
            return dataclasses.replace(node, base=mark(node.base))
        param = targets.matrix(node.base) if isinstance(node, Lora) else None
        if param is None or param.part[1] == 1:
            return node
        index, count, _ = param.part
        a, b = (
            dataclasses.replace(factor, hf=f"{factor.hf}@{index}", part=names.NAMELESS[2])
            for factor in (node.a, node.b)
        )
        for number in range(param.shape[0] if "{}" in param.hf else 1):
            module = names.PREFIX + param.hf.removesuffix(".weight").format(number)
            found = _Part(index, count, node.scale, a.hf.format(number), b.hf.format(number))
            parts[module].append(found)
        return dataclasses.replace(node, a=a, b=b)

    marked = jax.tree.map(mark, spec, is_leaf=targets.is_node)
    only = map_params(lambda param: param if param.added else None, marked)
    found = state.lazy_state(only, added)
    joined: Joined = {}
    for module, several in parts.items():
        several.sort(key=lambda part: part.index)
        pairs = [(part, found.pop(part.a), found.pop(part.b)) for part in several]
        found[f"{module}.lora_A.weight"] = _inputs([a for _, a, _ in pairs])
        found[f"{module}.lora_B.weight"] = _outputs(pairs)
        rank = found[f"{module}.lora_A.weight"].shape[0]
        joined[module.removeprefix(names.PREFIX)] = rank, several[0].scale
    return found, joined


def _inputs(parts: list[LazyTensor]) -> LazyTensor:
    """A of all parts, [ΣR, inputs]."""
    rank, width = sum(part.shape[0] for part in parts), parts[0].shape[1]

    def read() -> np.ndarray:
        return np.concatenate([part.read() for part in parts])

    return LazyTensor((rank, width), parts[0].dtype, read)


def _outputs(pairs: list[tuple[_Part, LazyTensor, LazyTensor]]) -> LazyTensor:
    """B of all parts, [n·outputs, ΣR], relative to the scale of the first."""
    first, _, b = pairs[0]
    outputs = b.shape[0]
    shape = (first.count * outputs, sum(a.shape[0] for _, a, _ in pairs))

    def read() -> np.ndarray:
        whole, column = np.zeros(shape, b.dtype), 0
        for part, _, factor in pairs:
            rows = slice(part.index * outputs, (part.index + 1) * outputs)
            columns = slice(column, column + factor.shape[1])
            whole[rows, columns] = factor.read() * np.asarray(part.scale / first.scale, b.dtype)
            column += factor.shape[1]
        return whole

    return LazyTensor(shape, b.dtype, read)


def _require_whole(spec: Tree) -> None:
    """Raises ValueError if fused vectors, such as magnitudes, lack some of their parts."""
    found: dict[str, list[str]] = collections.defaultdict(list)
    counts = {}
    leaves = jax.tree.leaves(spec, is_leaf=is_param)
    for path, param in zip(tree.paths(spec, is_leaf=is_param), leaves, strict=True):
        if _is_vector(param):
            found[param.hf].append(path)
            counts[param.hf] = param.part[1]
    for name, paths in found.items():
        if len(paths) < counts[name]:
            raise ValueError(
                f"{name} fuses {counts[name]} projections, but only {targets.listed(paths)} are "
                "adapted: name all of them as targets"
            )


def _is_vector(param: Param) -> bool:
    """Whether a parameter is one part of fused magnitudes or factors."""
    return param.added and param.inputs == 0 and param.part[1] > 1
