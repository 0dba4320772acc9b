"""Converts the named tensors of a checkpoint to parameters and back.

Every `Param` declares its tensor's name, layout and part of a fused tensor. This module follows
these declarations in both directions, so import and export cannot disagree.
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

REPORTED = 100  # problems listed in one message

# Tensors that checkpoints carry and a model ignores unless its spec names them: tables that follow
# from the configuration, causal masks, heads tied to the embedding, heads of objectives that were
# not asked for (such as DeBERTa v3's replaced-token head), and DeBERTa's absolute positions, which
# only its mask decoder reads.
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

# Tensor names in other versions, with their current names.
_RENAMED = (
    (r"LayerNorm\.gamma$", "LayerNorm.weight"),
    (r"LayerNorm\.beta$", "LayerNorm.bias"),
    (r"^lm_predictions\.lm_head\.bias$", "cls.predictions.bias"),
    (r"^lm_predictions\.lm_head\.", "cls.predictions.transform."),
)


class StoredParam:
    """A parameter in a checkpoint, which is read when it is indexed.

    Attributes:
        shape: shape of the parameter.
        dtype: dtype of its tensors; if they differ, the type that holds all of them.
    """

    def __init__(self, views: Sequence[np.ndarray], numbered: tuple[int, ...]) -> None:
        """Takes views in our layout, one per index along leading axes of lengths `numbered`."""
        self._views = views
        self._places = np.arange(len(views)).reshape(numbered)
        self.shape = (*numbered, *views[0].shape)
        self.dtype = np.dtype(functools.reduce(jnp.promote_types, (v.dtype for v in views)))

    def __getitem__(self, index: Index) -> np.ndarray:
        """A copy of the part with these slices, one per axis."""
        within = index[self._places.ndim :]
        places = self._places[index[: self._places.ndim]]
        views = [self._views[place][within] for place in places.ravel().tolist()]
        # In C order: JAX would copy an array in the views' order once more.
        part = np.empty((*places.shape, *views[0].shape), self.dtype)
        for numbers, view in zip(np.ndindex(places.shape), views, strict=True):
            part[numbers] = view
        return part

    def read(self) -> np.ndarray:
        """A copy of the whole parameter."""
        return self[(slice(None),) * len(self.shape)]


Place = Callable[[StoredParam, Param], Any]


def from_state(
    spec: Any,
    tensors: Tensors,
    *,
    place: Place | None = None,
    ignored: Sequence[str] = IGNORED,
) -> Any:
    """Converts a checkpoint's tensors to parameters, in the tensors' precision.

    Accepts names without the prefix of the family's full model ("h.0.…" for "transformer.h.0.…")
    and names from other versions (such as gamma and beta of a LayerNorm).

    Args:
        spec: the model's tree of `Param`.
        tensors: the checkpoint, by Hugging Face names. Only the tensors of one parameter are in use
            at a time, so a mapping that reads lazily needs little memory.
        place: puts each parameter in its place once its tensors are read, like `sharded`. By
            default parameters are host arrays.
        ignored: regular expressions for tensor names that the model does not use. Unused tensors
            that match one are ignored silently.

    Raises:
        ValueError: lists parameters without a Hugging Face name, and tensors that are missing,
            unused, not floating-point, or of another shape.
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
            problems.append(f"shape: {name} is {tensor.shape}, but the model needs {shape}")
        elif not jnp.issubdtype(tensor.dtype, jnp.floating):
            problems.append(f"dtype: {name} is {tensor.dtype}; quantised weights are not supported")
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
    """A `Place` that shards a parameter over the current mesh by its logical axes.

    Each process reads only the parts on its devices. Without a mesh, parameters go to the default
    device.

    Args:
        dtype: dtype to convert floating-point values to; unchanged by default.
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
        # Pending transfers would keep the data that was read in memory.
        return value.block_until_ready()

    return place


def to_state(spec: Any, params: Any) -> dict[str, np.ndarray]:
    """Converts parameters to a checkpoint's tensors by Hugging Face names; inverts `from_state`.

    Raises:
        ValueError: lists parameters without a Hugging Face name, and those that are not in the
            spec, missing, or of another shape.
    """
    return {name: tensor.read() for name, tensor in lazy_state(spec, params).items()}


def lazy_state(spec: Any, params: Any, *, dtype: np.dtype | None = None) -> dict[str, LazyTensor]:
    """Like `to_state`, but fetches and converts each tensor only when it is read.

    Args:
        spec: the model's tree of `Param`.
        params: the matching tree of arrays.
        dtype: dtype to convert values to; unchanged by default.

    Raises:
        ValueError: as for `to_state`.
    """
    declared = dict(zip(trees.paths(spec, is_leaf=is_param), _named(spec), strict=True))
    values = dict(zip(trees.paths(params), jax.tree.leaves(params), strict=True))
    problems = [f"missing: {path}" for path in declared if path not in values]
    problems += [f"extra: {path}" for path in values if path not in declared]
    problems += [
        f"shape: {path} is {values[path].shape}, but the spec says {param.shape}"
        for path, param in declared.items()
        if path in values and values[path].shape != param.shape
    ]
    _report("the parameters do not match the spec", problems)

    # By tensor name and part: the declaration, the value, and its indices along the leading axes.
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
        # safetensors writes raw memory, so the array must be in C order.
        tensor = np.empty(shape, target)
        parts = np.split(tensor, len(pieces), axis=pieces[0][0].part[2])
        for part, (param, value, numbers) in zip(parts, pieces, strict=True):
            theirs, ours = param.layout.split("->")
            part[...] = einops.rearrange(np.asarray(_fetch(value, numbers)), f"{ours} -> {theirs}")
        return tensor

    return LazyTensor(shape, target, read)


def _fetch(value: Any, numbers: tuple[int, ...]) -> Any:
    """The value at these indices along its leading axes, or all of it without indices.

    A device array is always copied first: JAX caches an array's host value as long as it lives.
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
    # A gather, because experts may be split over devices and a sharded axis cannot be sliced.
    return value.at[tuple(number[None] for number in numbers)].get(out_sharding=place)[0]


def _find(wanted: Mapping[str, Any], tensors: Tensors) -> tuple[dict[str, str], list[str]]:
    """Maps the model's tensor names to those in the checkpoint, and lists ambiguous ones."""
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
    """The declarations; raises ValueError unless all of them have a Hugging Face name."""
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
    """Lengths of the leading axes whose indices are part of the tensor's name: layers, experts."""
    return param.shape[: param.hf.count("{}")]


def _sizes(param: Param) -> dict[str, int]:
    """The length of each axis that the layout names; axes of length 1 are called "1"."""
    shape = param.shape[param.hf.count("{}") :]
    names = param.layout.split("->")[1].split()
    return {name: n for name, n in zip(names, shape, strict=True) if name != "1"}


def _tensors(param: Param) -> Iterator[tuple[str, tuple[int, ...]]]:
    """Name and shape of the tensors that hold a parameter, in the order of its indices."""
    sizes = _sizes(param)
    axes = re.findall(r"\((.*?)\)|(\w+)", param.layout.split("->")[0])  # one group of each is empty
    shape = [
        math.prod(sizes.get(name, 1) for name in f"{joined}{single}".split())
        for joined, single in axes
    ]
    shape[param.part[2]] *= param.part[1]
    for numbers in np.ndindex(_numbered(param)):
        yield param.hf.format(*numbers), tuple(shape)
