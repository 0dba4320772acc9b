"""How much a traced program holds at once, on one chip, as a compiler that fuses would run it.

Values are of two kinds. What products, kernels, look-ups, loops and transfers between chips give is
written to memory. All between them is computed where it is read, and costs nothing but that what it
is computed from stays; unless several read it and it is smaller than that. Values come in the order
of the program and go after their last reader.
"""

import dataclasses
import math
from collections.abc import Iterable, Sequence
from typing import Any

import jax
import numpy as np
from jax.extend.core import ClosedJaxpr, Jaxpr, Literal

# What is written to memory, beside loops; the rest is computed where it is read.
WRITTEN = {
    "all_gather",
    "all_to_all",
    "argsort",
    "conv_general_dilated",
    "cumsum",
    "dot_general",
    "gather",
    "pallas_call",
    "ppermute",
    "psum_invariant",
    "psum",
    "psum_scatter",
    "ragged_dot_general",
    "reduce_scatter",
    "reshard",
    "scatter",
    "scatter-add",
    "sort",
    "top_k",
}
INLINED = {
    "closed_call": "call_jaxpr",
    "core_call": "call_jaxpr",
    "custom_jvp_call": "call_jaxpr",
    "custom_vjp_call": "call_jaxpr",
    "jit": "jaxpr",
    "remat2": "jaxpr",
    "checkpoint": "jaxpr",
    "shard_map": "jaxpr",
}
MOVED = {"copy", "pvary", "pcast", "reshape", "squeeze", "stop_gradient", "transpose"}
MOVED |= {"broadcast_in_dim", "expand_dims", "optimization_barrier"}  # of as many elements
LANES, SUBLANES = 128, 8  # a tile of a TPU's memory holds so many numbers of 4 bytes


@dataclasses.dataclass(eq=False)
class Value:
    """An array of the program.

    Attributes:
        aval: its type.
        held: whether it lies in memory that is counted.
        sources: values in memory that it is computed from; itself, if it lies there.
        readers: of it, as they come in the program.
        stack: that it is a loop's slice of.
        size: bytes on a chip.
    """

    aval: Any
    held: bool = False
    sources: frozenset["Value"] = frozenset()
    readers: list["Step"] = dataclasses.field(default_factory=list)
    stack: "Value | None" = None
    size: float = 0.0


@dataclasses.dataclass(eq=False)
class Step:
    """An operation: its name and parameters, what it reads and what it gives."""

    name: str
    params: dict[str, Any]
    reads: list[Value]
    gives: list[Value]
    inner: "Program | None" = None


@dataclasses.dataclass(eq=False)
class Program:
    """Steps in order, without calls within them."""

    steps: list[Step]
    inputs: list[Value]
    constants: list[Value]
    outputs: list[Value]


def local_bytes(aval: Any, itemsize: int | None = None) -> float:
    """Bytes of an array on one chip."""
    if jax.dtypes.issubdtype(aval.dtype, jax.dtypes.prng_key):
        return 4 * 2 * math.prod(aval.shape)
    return math.prod(_local_shape(aval)) * (itemsize or aval.dtype.itemsize)


def _local_shape(aval: Any) -> list[int]:
    return [-(-n // _ways(aval, axes)) for n, axes in zip(aval.shape, _split(aval), strict=True)]


def _split(aval: Any) -> list[set[str]]:
    """The mesh axes that split each dimension."""
    spec = () if _mesh(aval) is None else aval.sharding.spec
    names = [part if isinstance(part, tuple) else (part,) for part in spec]
    names += [()] * (len(aval.shape) - len(names))
    return [{axis for axis in part if axis is not None} for part in names]


def _mesh(aval: Any) -> Any:
    sharding = getattr(aval, "sharding", None)
    return None if sharding is None or sharding.mesh.empty else sharding.mesh


def _ways(aval: Any, axes: Iterable[str]) -> int:
    return math.prod(_mesh(aval).shape[axis] for axis in axes)


def _tiled_bytes(aval: Any) -> float:
    """As a kernel of a TPU wants it: rows of 128 numbers, 8 of 4 bytes or as many bytes."""
    shape, size = _local_shape(aval), aval.dtype.itemsize
    if len(shape) < 2:
        return local_bytes(aval)
    *outer, rows, columns = shape
    step = SUBLANES * max(1, 4 // size) if rows > 1 else 1
    rows, columns = -(-rows // step) * step, -(-columns // LANES) * LANES
    return math.prod(outer) * rows * columns * size


def program(closed: ClosedJaxpr | Jaxpr) -> Program:
    """A traced program with calls written out."""
    jaxpr = getattr(closed, "jaxpr", closed)
    inputs = [Value(var.aval) for var in jaxpr.invars]
    constants = [Value(var.aval) for var in jaxpr.constvars]
    steps: list[Step] = []
    outputs = _write_out(jaxpr, [*constants, *inputs], steps)
    for step in steps:
        for value in step.reads:
            value.readers.append(step)
    return Program(steps, inputs, constants, outputs)


def _write_out(jaxpr: Jaxpr, given: Sequence[Value], steps: list[Step]) -> list[Value]:
    values: dict[Any, Value] = dict(zip([*jaxpr.constvars, *jaxpr.invars], given, strict=True))

    def read(atom: Any) -> Value:
        return Value(atom.aval) if isinstance(atom, Literal) else values[atom]

    for equation in jaxpr.eqns:
        name, params = equation.primitive.name, equation.params
        reads = [read(atom) for atom in equation.invars]
        if name in INLINED:
            inner = params[INLINED[name]]
            open_ = getattr(inner, "jaxpr", inner)
            constants = [Value(var.aval) for var in open_.constvars]
            gives = _write_out(open_, [*constants, *reads], steps)
        else:
            gives = [Value(var.aval) for var in equation.outvars]
            body = {"scan": "jaxpr", "while": "body_jaxpr"}.get(name)
            branches = [program(b) for b in params["branches"]] if name == "cond" else []
            inner = program(params[body]) if body else max(branches, key=_steps, default=None)
            steps.append(Step(name, params, reads, gives, inner))
        values.update(zip(equation.outvars, gives, strict=True))
    return [read(atom) for atom in jaxpr.outvars]


def _steps(found: Program) -> int:
    return len(found.steps)


class Meter:
    """Adds up what a program holds.

    Args:
        tiled: whether kernels want tiles, as on a TPU.
    """

    def __init__(self, *, tiled: bool) -> None:
        self.tiled = tiled
        self._copies: dict[Any, Value] = {}  # of stacks of weights, converted before loops
        self._copied: set[Value] = set()  # by the step that runs

    def peak(self, found: Program) -> float:
        """Bytes, at the most, beside the program's inputs and what is written in their place."""
        for value in [*found.inputs, *found.constants]:
            value.sources = frozenset([value])
        return self._peak(found)

    def _peak(self, found: Program) -> float:
        end = len(found.steps)
        born: dict[Value, int] = {}
        last: dict[Value, int] = {}
        live = np.zeros(end + 1)
        for index, step in enumerate(found.steps):
            self._copied = set()
            live[index] = self._run(step)
            for value in self._copied:
                born.setdefault(value, index)
            born |= {value: index for value in step.gives if value.held}
            if any(value.held for value in step.gives):
                used = {source for value in step.reads for source in value.sources}
                last |= dict.fromkeys(used | self._copied, index)
        last |= {source: end for value in found.outputs for source in value.sources}
        for value, start in born.items():
            live[start : last.get(value, start) + 1] += value.size
        return float(live.max(initial=0.0))

    def _run(self, step: Step) -> float:
        """Says where what a step gives lies; returns bytes that it holds only while it runs."""
        if step.inner is not None:
            return self._loop(step, step.inner)
        if step.name in MOVED or (step.name == "reshard" and _stays(step)):
            return _move(step)
        sources = _union(step.reads)
        if step.name == "convert_element_type" and step.reads[0].stack is not None:
            sources = self._copy(step.reads[0], step.gives[0]) or sources
        held = sum(source.size for source in sources if source.held)
        for value in step.gives:
            value.size = local_bytes(value.aval, _narrowest(value))
            # A sum of activations is written, and what it is of goes; moments and parameters are
            # not, since they take the place of the old ones.
            shared = len(value.readers) > 1 and len(sources) > 1 and value.aval.dtype.itemsize == 2
            value.held = step.name in WRITTEN or (shared and value.size <= held)
            value.sources = frozenset([value]) if value.held else sources
        if step.name == "pallas_call":
            return self._kernel(step)
        return _gathered(step) if step.name == "dot_general" else 0.0

    def _kernel(self, step: Step) -> float:
        """Operands that were not in memory are written for a kernel."""
        size = _tiled_bytes if self.tiled else local_bytes
        for value in step.gives:
            value.size = size(value.aval)
        return sum(size(value.aval) for value in step.reads if value.sources and not value.held)

    def _copy(self, slice_: Value, narrow: Value) -> frozenset[Value] | None:
        """What a loop rounds of a stack of weights is rounded before it, all at once."""
        ratio = narrow.aval.dtype.itemsize / slice_.aval.dtype.itemsize
        if slice_.stack is None or ratio >= 1:
            return None
        key = (slice_.stack.sources, slice_.stack.aval.shape, narrow.aval.dtype)
        size = ratio * local_bytes(slice_.stack.aval)
        copied = self._copies.setdefault(key, Value(slice_.stack.aval, held=True, size=size))
        self._copied.add(copied)
        return frozenset([copied])

    def _loop(self, step: Step, inner: Program) -> float:
        for value in step.gives:
            value.size, value.held = local_bytes(value.aval), True
            value.sources = frozenset([value])
        skipped, fixed, carried = _arity(step)
        saved = 0.0
        for index, (outer, value) in enumerate(
            zip(step.reads[skipped:], inner.inputs, strict=True)
        ):
            value.sources = outer.sources
            if fixed <= index < fixed + carried:
                # What is carried is written over from step to step.
                value.sources = step.gives[index - fixed].sources
                saved += outer.size if outer.held and len(outer.readers) == 1 else 0.0
            elif index >= fixed + carried:
                value.stack = outer
        copied = set(self._copied)
        peak = self._peak(inner)
        self._copied |= copied
        return peak - saved


def _union(values: Iterable[Value]) -> frozenset[Value]:
    return frozenset().union(*(value.sources for value in values))


def _arity(step: Step) -> tuple[int, int, int]:
    """Of what a loop reads: how much its body does not, how much is the same in all its rounds,
    and how much is carried from round to round."""
    params = step.params
    if step.name == "scan":
        return 0, params["num_consts"], params["num_carry"]
    if step.name == "while":
        return params["cond_nconsts"], params["body_nconsts"], len(step.gives)
    return 1, len(step.reads), 0  # cond: which branch


def _move(step: Step) -> float:
    """The same numbers in another shape."""
    for index, value in enumerate(step.gives):
        origin = step.reads[min(index, len(step.reads) - 1)]
        value.sources, value.stack, value.size = origin.sources, origin.stack, origin.size
    return 0.0


def _stays(step: Step) -> bool:
    return local_bytes(step.reads[0].aval) == local_bytes(step.gives[0].aval)


def _narrowest(value: Value) -> int | None:
    """Bytes of an element: those of what all its readers round it to, before it is written."""
    sizes = set()
    for reader in value.readers:
        if reader.name == "convert_element_type":
            sizes.add(reader.gives[0].aval.dtype.itemsize)
        elif reader.name in MOVED and reader.gives:
            index = min(reader.reads.index(value), len(reader.gives) - 1)
            sizes.add(_narrowest(reader.gives[index]))
        else:
            return None
    if not sizes or None in sizes:
        return None
    return min(max(sizes), value.aval.dtype.itemsize)


def _gathered(step: Step) -> float:
    """Operands and sums of a product that chips share in another way than its result."""
    (contracted, _), result = step.params["dimension_numbers"], step.gives[0]
    if _mesh(result.aval) is None:
        return 0.0
    used = set().union(*_split(result.aval))
    parts = [_split(value.aval) for value in step.reads]
    over = [
        set().union(*(part[dim] for dim in dims))
        for part, dims in zip(parts, contracted, strict=True)
    ]
    summed = over[0] & over[1]
    total = 0.0
    if summed & used:
        total += local_bytes(result.aval) * _ways(result.aval, summed & used)
    for value, mine, part in zip(step.reads, over, parts, strict=True):
        moved = mine - summed | (set().union(*part) - mine - used)
        if moved:
            total += local_bytes(value.aval) * _ways(value.aval, moved)
    return total
