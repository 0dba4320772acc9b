"""Peak memory of a traced program on one chip, under a model of a fusing compiler.

Values are of two kinds. Outputs of matrix products, kernels, gathers, loops and collectives are
written to memory. Everything between them is fused into its readers: it takes no memory, but keeps
its own sources alive. The exception is a value that several steps read and that is smaller than
its sources, which is written. Values are allocated in program order and freed after their last
reader.
"""

import collections
import dataclasses
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from llmjax.planning.traces import (
    Kind,
    Program,
    Step,
    Value,
    arity,
    is_auto,
    local_bytes,
    mesh_of,
    split,
    tiled_bytes,
    ways,
)

# Primitives whose outputs are written to memory, besides loops; all others are fused.
WRITTEN = {
    "all_gather",
    "all_to_all",
    "argmax",
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
MOVED = {"copy", "pvary", "pcast", "reshape", "squeeze", "stop_gradient", "transpose"}
MOVED |= {"broadcast_in_dim", "expand_dims", "optimization_barrier"}  # the elements stay the same


@dataclasses.dataclass(frozen=True)
class Span:
    """An array in memory: first and last step (inclusive), bytes and kind."""

    start: int
    end: int
    size: float
    kind: Kind


def peak(spans: Sequence[Span]) -> dict[Kind, float]:
    """Bytes by kind at the time of the peak."""
    changes = np.zeros(max((span.end for span in spans), default=0) + 2)
    for span in spans:
        changes[span.start] += span.size
        changes[span.end + 1] -= span.size
    at = int(np.argmax(np.cumsum(changes)))
    found: collections.Counter[Kind] = collections.Counter()
    for span in spans:
        if span.start <= at <= span.end:
            found[span.kind] += span.size  # type: ignore[assignment]
    return dict(found)


class Meter:
    """Finds the live ranges of a program's arrays.

    Args:
        tiled: whether kernels need tiled operands, as on a TPU.
        shapes: shapes of the parameters; float32 arrays of these shapes count as gradients.
    """

    def __init__(self, *, tiled: bool, shapes: Iterable[tuple[int, ...]] = ()) -> None:
        self.tiled, self.shapes = tiled, set(shapes)
        self._clock = 0
        self._spans: list[Span] = []
        self._copies: dict[Any, Value] = {}  # stacked weights, cast once before the loops
        self._copied: set[Value] = set()  # copies that the current step uses
        self._replaced: set[Value] = set()  # values that the current loop's outputs overwrite

    def spans(self, found: Program) -> list[Span]:
        """Live ranges of all arrays except the program's inputs and their replacements."""
        for value in [*found.inputs, *found.constants]:
            value.sources, value.kind = frozenset([value]), "input"
        self._measure(found)
        return self._spans

    def _measure(self, found: Program) -> None:
        born: dict[Value, int] = {}
        last: dict[Value, int] = {}
        for step in found.steps:
            self._clock += 1
            start, self._copied, self._replaced = self._clock, set(), set()
            self._run(step)
            for value in [*step.gives, *self._copied]:
                if value.held:
                    born.setdefault(value, start)
            if any(value.held for value in step.gives):
                used = {source for value in step.reads for source in value.sources}
                last |= dict.fromkeys(used | self._copied, self._clock)
            last |= dict.fromkeys(self._replaced, start - 1)
        last |= {source: self._clock for value in found.outputs for source in value.sources}
        for value, start in born.items():
            end = max(start, last.get(value, start))
            self._spans.append(Span(start, end, value.size, value.kind))

    def _run(self, step: Step) -> None:
        """Decides where a step's outputs live, and what it holds only while it runs."""
        if step.inner is not None:
            self._loop(step, step.inner)
            return
        if step.name in MOVED or (step.name == "reshard" and _stays(step)):
            _move(step)
            return
        sources = _union(step.reads)
        if step.name == "convert_element_type" and step.reads[0].stack is not None:
            sources = self._copy(step.reads[0], step.gives[0]) or sources
        held = sum(source.size for source in sources if source.held)
        for value in step.gives:
            value.size = _size(value)
            # A sum of activations is written, which frees its terms. Moments and parameters are
            # not counted, because they overwrite the old ones.
            shared = len(value.readers) > 1 and len(sources) > 1 and value.aval.dtype.itemsize == 2
            written = step.name in WRITTEN or step.name.startswith("reduce_")
            value.held = written or (shared and value.size <= held)
            value.kind = self._kind(step, value, sources)
            value.sources = frozenset([value]) if value.held else sources
        own = {
            "pallas_call": self._kernel,
            "ragged_dot_general": _spread,
            "dot_general": _gathered,
        }.get(step.name)
        for size in own(step) if own else ():
            self._spans.append(Span(self._clock, self._clock, size, "working"))

    def _kind(self, step: Step, value: Value, sources: frozenset[Value]) -> Kind:
        if step.name == "reshard" and all(source.kind == "input" for source in sources):
            return "weights"  # gathered
        if value.aval.dtype.itemsize == 4 and value.aval.shape in self.shapes:
            return "gradients"
        return "activations" if step.name == "scan" else "working"

    def _kernel(self, step: Step) -> list[float]:
        """Bytes of operands that must be written because a kernel cannot fuse them."""
        size = tiled_bytes if self.tiled else local_bytes
        for value in step.gives:
            value.size, value.tiled = size(value.aval), self.tiled
        return [size(value.aval) for value in step.reads if value.sources and not value.held]

    def _copy(self, slice_: Value, narrow: Value) -> frozenset[Value] | None:
        """A cast of a loop's slice of the weights is hoisted: the whole stack is cast before it."""
        ratio = narrow.aval.dtype.itemsize / slice_.aval.dtype.itemsize
        if slice_.stack is None or ratio >= 1:
            return None
        key = (slice_.stack.sources, slice_.stack.aval.shape, narrow.aval.dtype)
        size = ratio * local_bytes(slice_.stack.aval)
        copied = self._copies.setdefault(
            key, Value(slice_.stack.aval, held=True, size=size, kind="weights")
        )
        self._copied.add(copied)
        return frozenset([copied])

    def _loop(self, step: Step, inner: Program) -> None:
        for value in step.gives:
            value.size, value.held = local_bytes(value.aval), True
            value.kind, value.sources = self._kind(step, value, frozenset()), frozenset([value])
        skipped, fixed, carried = arity(step)
        replaced = set()
        for index, (outer, value) in enumerate(
            zip(step.reads[skipped:], inner.inputs, strict=True)
        ):
            value.sources = outer.sources
            if fixed <= index < fixed + carried:
                # The carry is overwritten by every iteration.
                value.sources = step.gives[index - fixed].sources
                if outer.held and len(outer.readers) == 1:
                    replaced.add(outer)
            elif index >= fixed + carried:
                value.stack = outer
        copied = set(self._copied)
        self._measure(inner)
        self._copied |= copied
        self._replaced = replaced
        if step.name == "scan":
            self._stack(step.gives[carried:], inner.outputs[carried:])

    def _stack(self, stacks: list[Value], slices: list[Value]) -> None:
        """Sets the sizes of a loop's stacked outputs: tiled for kernels, duplicates only once."""
        first: dict[Value, Value] = {}
        for value, slice_ in zip(stacks, slices, strict=True):
            if self.tiled and (slice_.tiled or _for_kernel(value)):
                value.size, value.tiled = tiled_bytes(value.aval), True
            same = first.setdefault(slice_, value)
            if same is not value:
                value.held, value.sources = False, same.sources


def _union(values: Iterable[Value]) -> frozenset[Value]:
    return frozenset().union(*(value.sources for value in values))


def _move(step: Step) -> None:
    """Propagates storage through a step that only changes shape or layout."""
    for index, value in enumerate(step.gives):
        origin = step.reads[min(index, len(step.reads) - 1)]
        value.sources, value.stack, value.size = origin.sources, origin.stack, origin.size
        value.tiled = origin.tiled and step.name not in ("transpose", "broadcast_in_dim")


def _stays(step: Step) -> bool:
    """Whether a reshard moves nothing: the local size stays, or the compiler decides (auto)."""
    before, after = step.reads[0].aval, step.gives[0].aval
    return local_bytes(before) == local_bytes(after) or is_auto(before) or is_auto(after)


def _size(value: Value) -> float:
    """Bytes on a chip; an auto-sharded array that is resharded at once counts at that sharding."""
    size = local_bytes(value.aval, _narrowest(value))
    if is_auto(value.aval) and [reader.name for reader in value.readers] == ["reshard"]:
        return min(size, local_bytes(value.readers[0].gives[0].aval, _narrowest(value)))
    return size


def _narrowest(value: Value) -> int | None:
    """Itemsize after the casts of all readers, which fuse into the write; None if one needs all."""
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


def _for_kernel(value: Value) -> bool:
    """Whether a kernel reads the value, also from inside a loop."""
    for reader in value.readers:
        if reader.name == "pallas_call":
            return True
        index = next(i for i, read in enumerate(reader.reads) if read is value)
        following: list[Value] = []
        if reader.inner is not None:
            following = reader.inner.inputs[index - arity(reader)[0] :][:1]
        elif reader.name in ("reshape", "pvary", "pcast", "reshard"):
            following = reader.gives
        if any(map(_for_kernel, following)):
            return True
    return False


def _gathered(step: Step) -> list[float]:
    """Bytes of the operands and sums of a product that need a reshard to match its result."""
    (contracted, _), result = step.params["dimension_numbers"], step.gives[0]
    if mesh_of(result.aval) is None:
        return []
    used = set().union(*split(result.aval))
    parts = [split(value.aval) for value in step.reads]
    over = [
        set().union(*(part[dim] for dim in dims))
        for part, dims in zip(parts, contracted, strict=True)
    ]
    summed = over[0] & over[1]
    found = []
    if summed & used:
        found.append(local_bytes(result.aval) * ways(result.aval, summed & used))
    for value, mine, part in zip(step.reads, over, parts, strict=True):
        moved = mine - summed | (set().union(*part) - mine - used)
        if moved:
            found.append(local_bytes(value.aval) * ways(value.aval, moved))
    return found


def _spread(step: Step) -> list[float]:
    """Bytes of XLA's expansion of a ragged product that contracts the groups (expert gradients).

    It copies both operands once per group, with zeros in the rows of other groups.
    """
    numbers = step.params["ragged_dot_dimension_numbers"]
    (contracted, _), _ = numbers.dot_dimension_numbers
    if not set(numbers.lhs_ragged_dimensions) <= set(contracted):
        return []
    left, right, sizes = (value.aval for value in step.reads)
    return [sizes.shape[-1] * local_bytes(operand) for operand in (left, right)]
