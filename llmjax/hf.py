"""Hugging Face checkpoints: named tensors there to parameters here, and back.

The name, layout and place within a fused tensor of every weight stand in its `Param`; this
module only follows them in both directions, so export and import cannot disagree.
"""

import math
import re
from collections.abc import Iterator, Mapping
from typing import Any

import einops
import jax
import numpy as np

from llmjax import tree as trees
from llmjax.spec import Param, is_param, map_params

Tensors = Mapping[str, np.ndarray]


def from_state(spec: Any, tensors: Tensors) -> Any:
    """The parameters, host arrays in the tensors' precision, that a checkpoint holds.

    Args:
        spec: the tree of `Param` of the model.
        tensors: the checkpoint, by the names that Hugging Face gives.

    Raises:
        ValueError: lists the parameters that have no name there, and the tensors that are
            missing, that the model has no use for, and whose shape is another.
    """
    wanted = {name: shape for param in _named(spec) for name, shape in _tensors(param)}
    problems = [f"missing: {name} {shape}" for name, shape in wanted.items() if name not in tensors]
    problems += [f"extra: {name}" for name in tensors if name not in wanted]
    problems += [
        f"shape: {name} is {tensors[name].shape}, and the model needs {shape}"
        for name, shape in wanted.items()
        if name in tensors and tensors[name].shape != shape
    ]
    _report("the checkpoint does not fit the model", problems)

    def one(param: Param) -> np.ndarray:
        index, count = param.part
        layers = [
            einops.rearrange(
                np.split(tensors[name], count, axis=-1)[index], param.layout, **_sizes(param)
            )
            for name, _ in _tensors(param)
        ]
        return np.stack(layers) if _is_stacked(param) else np.array(layers[0])

    return map_params(one, spec)


def to_state(spec: Any, params: Any) -> dict[str, np.ndarray]:
    """The tensors of a checkpoint by the names that Hugging Face gives; inverts `from_state`.

    Raises:
        ValueError: lists the parameters that have no name there, and those that the spec does
            not declare, misses, or declares with another shape.
    """
    declared = dict(zip(trees.paths(spec, is_leaf=is_param), _named(spec), strict=True))
    values = dict(zip(trees.paths(params), jax.tree.leaves(params), strict=True))
    problems = [f"missing: {path}" for path in declared if path not in values]
    problems += [f"extra: {path}" for path in values if path not in declared]
    problems += [
        f"shape: {path} is {values[path].shape}, and the spec says {param.shape}"
        for path, param in declared.items()
        if path in values and values[path].shape != param.shape
    ]
    _report("the parameters are not those of the spec", problems)

    parts: dict[str, list[np.ndarray]] = {}
    for path, param in declared.items():
        theirs, ours = param.layout.split("->")
        value = np.asarray(values[path])
        index, count = param.part
        for (name, _), layer in zip(
            _tensors(param), value if _is_stacked(param) else [value], strict=True
        ):
            pieces = parts.setdefault(name, [np.empty(0)] * count)
            pieces[index] = einops.rearrange(layer, f"{ours} -> {theirs}")
    # safetensors writes the memory as it lies, so it must lie in order.
    return {
        name: np.ascontiguousarray(np.concatenate(pieces, axis=-1))
        for name, pieces in parts.items()
    }


def _named(spec: Any) -> list[Param]:
    """The declarations, which must all have a name in the checkpoint."""
    params = jax.tree.leaves(spec, is_leaf=is_param)
    paths = trees.paths(spec, is_leaf=is_param)
    nameless = [path for path, param in zip(paths, params, strict=True) if not param.hf]
    _report("these parameters have no place in the family's checkpoints", nameless)
    return params


def _report(what: str, problems: list[str]) -> None:
    if problems:
        raise ValueError("\n  ".join([f"{what}:", *problems]))


def _is_stacked(param: Param) -> bool:
    return param.axes[0] == "layers"


def _sizes(param: Param) -> dict[str, int]:
    """The length of each axis in the layout, within a layer."""
    shape = param.shape[1:] if _is_stacked(param) else param.shape
    return dict(zip(param.layout.split("->")[1].split(), shape, strict=True))


def _tensors(param: Param) -> Iterator[tuple[str, tuple[int, ...]]]:
    """Name and shape of the tensors there, one for each layer, that hold a parameter."""
    sizes = _sizes(param)
    axes = re.findall(r"\((.*?)\)|(\w+)", param.layout.split("->")[0])  # one is empty of each two
    shape = [
        math.prod(sizes[name] for name in f"{joined}{single}".split()) for joined, single in axes
    ]
    shape[-1] *= param.part[1]
    for layer in range(param.shape[0] if _is_stacked(param) else 1):
        yield param.hf.format(layer), tuple(shape)
