"""Named tensors there to parameters here, and back.

The name, layout and place within a fused tensor of every weight stand in its `Param`; this
module only follows them in both directions, so export and import cannot disagree.
"""

import collections
import functools
import math
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import einops
import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AxisType

from llmjax import mesh
from llmjax import tree as trees
from llmjax.hf.writing import LazyTensor
from llmjax.spec import Param, is_param, map_params

Tensors = Mapping[str, np.ndarray]
Index = tuple[slice, ...]

REPORTED = 100  # problems that one message lists

# What checkpoints carry and a model of the family does not need, where its spec does not name it:
# tables that follow from the configuration, causal masks, heads tied to the embedding, heads of
# objectives that the model was not asked for (DeBERTa v3's for replaced tokens among them), and
# DeBERTa's absolute positions, which only its mask decoder reads.
IGNORED = (
    r"\.rotary_emb\.inv_freq$",
    r"position_ids$",
    r"\.attn\.(masked_)?bias$",
    r"^(lm_head|decoder|generator_lm_head)\.weight$",
    r"^lm_head\.decoder\.",
    r"^cls\.predictions\.decoder\.",
    r"^cls\.seq_relationship\.",
    r"\bpooler\.dense\.",
    r"^deberta\.embeddings\.position_embeddings\.weight$",
    r"^mask_predictions\.",
)

# Older or newer names of the same tensors.
_RENAMED = (
    (r"LayerNorm\.gamma$", "LayerNorm.weight"),
    (r"LayerNorm\.beta$", "LayerNorm.bias"),
    (r"^lm_predictions\.lm_head\.bias$", "cls.predictions.bias"),
    (r"^lm_predictions\.lm_head\.", "cls.predictions.transform."),
)


class StoredParam:
    """A parameter as a checkpoint holds it: an array that is read where it is indexed.

    Attributes:
        shape: that of the parameter.
        dtype: that of its tensors; of different ones (a layer in float32, say) what holds all.
    """

    def __init__(self, views: Sequence[np.ndarray], numbered: tuple[int, ...]) -> None:
        """Of views with our layout, for each number along the leading axes of these lengths."""
        self._views = views
        self._places = np.arange(len(views)).reshape(numbered)
        self.shape = (*numbered, *views[0].shape)
        self.dtype = np.dtype(functools.reduce(jnp.promote_types, (v.dtype for v in views)))

    def __getitem__(self, index: Index) -> np.ndarray:
        """A copy of the part with these slices, one for each axis."""
        within = index[self._places.ndim :]
        places = self._places[index[: self._places.ndim]]
        views = [self._views[place][within] for place in places.ravel().tolist()]
        # In our order: jax would copy once more what lies as it does there.
        part = np.empty((*places.shape, *views[0].shape), self.dtype)
        for numbers, view in zip(np.ndindex(places.shape), views, strict=True):
            part[numbers] = view
        return part

    def read(self) -> np.ndarray:
        """A copy of all of it."""
        return self[(slice(None),) * len(self.shape)]


Place = Callable[[StoredParam, Param], Any]


def from_state(
    spec: Any,
    tensors: Tensors,
    *,
    place: Place | None = None,
    ignored: Sequence[str] = IGNORED,
) -> Any:
    """The parameters that a checkpoint holds, in the tensors' precision.

    Names without the prefix of the family's model with a head ("h.0.…" for "transformer.h.0.…")
    and other names that tensors had once (the LayerNorms' gamma and beta, say) are understood.

    Args:
        spec: the tree of `Param` of the model.
        tensors: the checkpoint, by the names that Hugging Face gives. Only one parameter's are
            in use at a time, so a mapping that reads lazily keeps little in memory.
        place: puts a parameter where it belongs, as soon as its tensors are at hand; `sharded`
            does. By default parameters are host arrays.
        ignored: regular expressions, searched for in the names of tensors that the model has no
            use for; a name that has one is left out silently.

    Raises:
        ValueError: lists the parameters that have no name there, and the tensors that are
            missing, that the model has no use for, that are not of floating point, and whose
            shape is another.
    """
    wanted = {name: shape for param in _named(spec) for name, shape in _tensors(param)}
    found, problems = _find(wanted, tensors)
    problems += [f"missing: {name} {shape}" for name, shape in wanted.items() if name not in found]
    problems += [
        f"extra: {name}"
        for name in found
        if name not in wanted and not any(re.search(pattern, name) for pattern in ignored)
    ]
    for name, shape in wanted.items():
        if name not in found:
            continue
        tensor = tensors[found[name]]
        if tensor.shape != shape:
            problems.append(f"shape: {name} is {tensor.shape}, and the model needs {shape}")
        elif not jnp.issubdtype(tensor.dtype, jnp.floating):
            problems.append(f"dtype: {name} is {tensor.dtype}; quantised weights are not read")
    _report("the checkpoint does not fit the model", problems)

    def one(param: Param) -> Any:
        index, count, axis = param.part
        views = [
            einops.rearrange(
                np.split(tensors[found[name]], count, axis=axis)[index],
                param.layout,
                **_sizes(param),
            )
            for name, _ in _tensors(param)
        ]
        stored = StoredParam(views, _numbered(param))
        return stored.read() if place is None else place(stored, param)

    return map_params(one, spec)


def sharded(dtype: np.dtype | None = None) -> Place:
    """A `Place` on the devices, by the parameter's axes on the current mesh.

    Each process reads only what its devices hold. Without a mesh a parameter goes to the default
    device.

    Args:
        dtype: what floating-point values are converted to; by default they stay as they are.
    """

    def place(stored: StoredParam, param: Param) -> jax.Array:
        target = dtype or stored.dtype

        def part(index: Index | None) -> np.ndarray:
            assert index is not None
            return stored[index].astype(target, copy=False)

        sharding = mesh.named_sharding(param.axes)
        if sharding is None:
            value = jnp.asarray(part((slice(None),) * len(stored.shape)))
        else:
            value = jax.make_array_from_callback(stored.shape, sharding, part)
        # Copies that are under way would keep what was read in memory.
        return value.block_until_ready()

    return place


def to_state(spec: Any, params: Any) -> dict[str, np.ndarray]:
    """The tensors of a checkpoint by the names that Hugging Face gives; inverts `from_state`.

    Raises:
        ValueError: lists the parameters that have no name there, and those that the spec does
            not declare, misses, or declares with another shape.
    """
    return {name: tensor.read() for name, tensor in lazy_state(spec, params).items()}


def lazy_state(spec: Any, params: Any, *, dtype: np.dtype | None = None) -> dict[str, LazyTensor]:
    """`to_state`, each tensor fetched from the devices and laid out only when it is read.

    Args:
        spec: the tree of `Param` of the model.
        params: the matching tree of arrays.
        dtype: what values are converted to; by default they stay as they are.

    Raises:
        ValueError: as `to_state`.
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

    # For each tensor, by part: the declaration, the value, and the numbers of its place there.
    parts: dict[str, list] = {}
    shapes = {}
    for path, param in declared.items():
        index, count, _ = param.part
        for numbers, (name, shape) in zip(
            np.ndindex(_numbered(param)), _tensors(param), strict=True
        ):
            pieces = parts.setdefault(name, [None] * count)
            pieces[index] = (param, values[path], numbers)
            shapes[name] = shape
    return {name: _lazy(shapes[name], pieces, dtype) for name, pieces in parts.items()}


def _lazy(shape: tuple[int, ...], pieces: list, dtype: np.dtype | None) -> LazyTensor:
    own = functools.reduce(jnp.promote_types, (value.dtype for _, value, _ in pieces))
    target = np.dtype(dtype or own)

    def read() -> np.ndarray:
        # safetensors writes the memory as it lies, so it must lie in order.
        tensor = np.empty(shape, target)
        parts = np.split(tensor, len(pieces), axis=pieces[0][0].part[2])
        for part, (param, value, numbers) in zip(parts, pieces, strict=True):
            theirs, ours = param.layout.split("->")
            part[...] = einops.rearrange(np.asarray(_fetch(value, numbers)), f"{ours} -> {theirs}")
        return tensor

    return LazyTensor(shape, target, read)


def _fetch(value: Any, numbers: tuple[int, ...]) -> Any:
    """What a value has at these numbers along its leading axes; without any, all of it.

    Of a device array always a copy: jax keeps what it once gave to the host for the array's life.
    """
    if not isinstance(value, jax.Array):
        return value[numbers]
    return _take(value, numbers) if numbers else _copy(value)


_copy = jax.jit(jnp.copy)


@jax.jit
def _take(value: jax.Array, numbers: tuple[jax.Array, ...]) -> jax.Array:
    kept = jax.typeof(value).sharding
    place = None
    if AxisType.Explicit in kept.mesh.axis_types:
        place = jax.NamedSharding(kept.mesh, jax.P(None, *kept.spec[len(numbers) :]))
    # A gather: experts may be split over devices, and slices along a split axis do not exist.
    return value.at[tuple(number[None] for number in numbers)].get(out_sharding=place)[0]


def _find(wanted: Mapping[str, Any], tensors: Tensors) -> tuple[dict[str, str], list[str]]:
    """Name by which the model knows a tensor → name in the checkpoint, and what is ambiguous."""
    heads = collections.Counter(name.partition(".")[0] for name in wanted)
    prefix = max(heads, key=heads.__getitem__, default="") + "."
    bare = not any(name.startswith(prefix) for name in tensors)
    found: dict[str, str] = {}
    problems = []
    for stored in tensors:
        name = stored
        for pattern, new in _RENAMED:
            name = re.sub(pattern, new, name)
        if bare and prefix + name in wanted:
            name = prefix + name
        if name in found:
            problems.append(f"twice: {name} as {found[name]} and as {stored}")
        found[name] = stored
    return found, problems


def _named(spec: Any) -> list[Param]:
    """The declarations, which must all have a name in the checkpoint."""
    params = jax.tree.leaves(spec, is_leaf=is_param)
    paths = trees.paths(spec, is_leaf=is_param)
    nameless = [path for path, param in zip(paths, params, strict=True) if not param.hf]
    _report("these parameters have no place in the family's checkpoints", nameless)
    return params


def _report(what: str, problems: list[str]) -> None:
    if not problems:
        return
    rest = len(problems) - REPORTED
    shown = [*problems[:REPORTED], *([f"and {rest} more"] if rest > 0 else [])]
    raise ValueError("\n  ".join([f"{what}:", *shown]))


def _numbered(param: Param) -> tuple[int, ...]:
    """The lengths of the leading axes that names there number: layers, experts."""
    return param.shape[: param.hf.count("{}")]


def _sizes(param: Param) -> dict[str, int]:
    """The length of each axis that the layout names; one of 1 has the name 1."""
    shape = param.shape[param.hf.count("{}") :]
    names = param.layout.split("->")[1].split()
    return {name: n for name, n in zip(names, shape, strict=True) if name != "1"}


def _tensors(param: Param) -> Iterator[tuple[str, tuple[int, ...]]]:
    """Name and shape of the tensors there that hold a parameter, in the order of its numbers."""
    sizes = _sizes(param)
    axes = re.findall(r"\((.*?)\)|(\w+)", param.layout.split("->")[0])  # one is empty of each two
    shape = [
        math.prod(sizes.get(name, 1) for name in f"{joined}{single}".split())
        for joined, single in axes
    ]
    shape[param.part[2]] *= param.part[1]
    for numbers in np.ndindex(_numbered(param)):
        yield param.hf.format(*numbers), tuple(shape)
