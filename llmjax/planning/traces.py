"""A traced program as a flat list of steps, with inlined calls, and the sizes of its arrays."""

import dataclasses
import math
from collections.abc import Iterable, Sequence
from typing import Any
from typing import Literal as Choice

import jax
from jax.extend.core import Jaxpr, Literal
from jax.sharding import AxisType

INLINED = {
    "checkpoint": "jaxpr",
    "closed_call": "call_jaxpr",
    "core_call": "call_jaxpr",
    "custom_jvp_call": "call_jaxpr",
    "custom_vjp_call": "call_jaxpr",
    "jit": "jaxpr",
    "remat2": "jaxpr",
    "shard_map": "jaxpr",
}
LANES, SUBLANES = 128, 8  # a tile of TPU memory, in elements of 4 bytes

Kind = Choice["input", "gradients", "weights", "activations", "working"]


@dataclasses.dataclass(eq=False)
class Value:
    """An array of the program.

    Attributes:
        aval: its abstract value.
        held: whether it occupies memory that is counted.
        sources: the held values that it is computed from; itself if it is held.
        readers: steps that read it, in program order.
        stack: the stacked array that it is a loop's slice of.
        tiled: whether a kernel wrote it in tiles.
        size: bytes on a chip.
        kind: category for the report.
    """

    aval: Any
    held: bool = False
    # Left out of repr, which would grow exponentially if values are shared.
    sources: frozenset["Value"] = dataclasses.field(default=frozenset(), repr=False)
    readers: list["Step"] = dataclasses.field(default_factory=list, repr=False)
    stack: "Value | None" = dataclasses.field(default=None, repr=False)
    tiled: bool = False
    size: float = 0.0
    kind: Kind = "working"


@dataclasses.dataclass(eq=False)
class Step:
    """An operation: its primitive and parameters, its operands and its results."""

    name: str
    params: dict[str, Any]
    reads: list[Value]
    gives: list[Value]
    inner: "Program | None" = None


@dataclasses.dataclass(eq=False)
class Program:
    """Steps in order, with calls inlined."""

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
    return [-(-n // ways(aval, axes)) for n, axes in zip(aval.shape, split(aval), strict=True)]


def split(aval: Any) -> list[set[str]]:
    """The mesh axes that split each dimension."""
    spec = () if mesh_of(aval) is None else aval.sharding.spec
    names = [part if isinstance(part, tuple) else (part,) for part in spec]
    names += [()] * (len(aval.shape) - len(names))
    return [{axis for axis in part if axis is not None} for part in names]


def mesh_of(aval: Any) -> Any:
    """The mesh of an array's sharding, or None."""
    sharding = getattr(aval, "sharding", None)
    return None if sharding is None or sharding.mesh.empty else sharding.mesh


def ways(aval: Any, axes: Iterable[str]) -> int:
    """The number of parts into which mesh axes split an array."""
    return math.prod(mesh_of(aval).shape[axis] for axis in axes)


def is_auto(aval: Any) -> bool:
    """Whether the compiler decides the array's sharding."""
    return mesh_of(aval) is not None and AxisType.Auto in mesh_of(aval).axis_types


def tiled_bytes(aval: Any) -> float:
    """Bytes in the layout of a TPU kernel: tiles of 128 by 8 elements of 4 bytes."""
    shape, size = _local_shape(aval), aval.dtype.itemsize
    if len(shape) < 2:
        return local_bytes(aval)
    *outer, rows, columns = shape
    step = SUBLANES * max(1, 4 // size) if rows > 1 else 1
    rows, columns = -(-rows // step) * step, -(-columns // LANES) * LANES
    return math.prod(outer) * rows * columns * size


def program(closed: Any) -> Program:
    """Flattens a traced program, a `ClosedJaxpr` or a `Jaxpr`, by inlining its calls."""
    jaxpr: Jaxpr = getattr(closed, "jaxpr", closed)
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
    seen: dict[Any, list[Value]] = {}

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
            step = Step(name, params, reads, gives, inner)
            gives = _same(step, seen) or gives
            if gives is step.gives:
                steps.append(step)
        values.update(zip(equation.outvars, gives, strict=True))
    return [read(atom) for atom in jaxpr.outvars]


def _same(step: Step, seen: dict[Any, list[Value]]) -> list[Value] | None:
    """The results of an earlier equal step, which the compiler would reuse (CSE)."""
    try:
        key = (step.name, tuple(map(id, step.reads)), tuple(sorted(step.params.items())))
        return seen.setdefault(key, step.gives)
    except TypeError:  # unhashable parameters
        return None


def _steps(found: Program) -> int:
    return len(found.steps)


def _alike(outer: Sequence[Value], inner: Sequence[Value]) -> int:
    """The number of values with the same rank outside of a loop as inside."""
    pairs = zip(outer, inner, strict=True)
    return sum(out.aval.ndim == within.aval.ndim for out, within in pairs)


def arity(step: Step) -> tuple[int, int, int]:
    """Counts a loop's operands: those its body does not take, its constants, and its carry."""
    params = step.params
    if step.name == "scan":
        assert step.inner is not None
        # Derived from ranks, since sliced and stacked values have one more axis outside of the loop
        # and the names of a scan's parameters differ between versions of JAX.
        carried = _alike(step.gives, step.inner.outputs)
        return 0, _alike(step.reads, step.inner.inputs) - carried, carried
    if step.name == "while":
        return params["cond_nconsts"], params["body_nconsts"], len(step.gives)
    return 1, len(step.reads), 0  # the branch index of cond
