"""What a program's chips send each other: kinds, bytes, and the mesh axes that they cross."""

import dataclasses
import math
import re
from collections.abc import Iterator, Mapping
from typing import Self

from llmjax.planning.program.groups import crossed_axes, replica_groups
from llmjax.planning.program.hlo import Computation, Program

KINDS = (
    "all-gather",
    "all-reduce",
    "reduce-scatter",
    "all-to-all",
    "ragged-all-to-all",
    "collective-permute",
    "collective-broadcast",
)


@dataclasses.dataclass(frozen=True)
class Collective:
    """One that a program runs.

    Attributes:
        kind: as XLA calls it.
        axes: of the mesh, which it crosses.
        group: how many chips exchange among each other.
        source: the operation of the model that it is part of, as JAX names it.
    """

    kind: str
    axes: tuple[str, ...]
    group: int
    source: str = ""


@dataclasses.dataclass(frozen=True)
class Amounts:
    """How much of it in a step, on one chip.

    Attributes:
        calls: how often it runs.
        bytes: of the whole array: the result of a gather, the operand of all others; of rows in
            unequal number (ragged-all-to-all) the smaller of what is read and written.
        wire: bytes that a chip sends at least. Over a group of n: (n-1)/n of an array that is
            gathered, scattered or sent to all; twice that of one that is reduced and kept by all;
            all of one that is passed on.
    """

    calls: float = 0
    bytes: float = 0.0
    wire: float = 0.0

    def __add__(self, other: Self) -> "Amounts":
        return Amounts(self.calls + other.calls, self.bytes + other.bytes, self.wire + other.wire)

    def __mul__(self, times: int) -> "Amounts":
        return Amounts(self.calls * times, self.bytes * times, self.wire * times)


class _Traffic(dict[Collective, Amounts]):
    def __add__(self, other: Self) -> "_Traffic":
        total = _Traffic(self)
        for collective, amounts in other.items():
            total[collective] = total.get(collective, Amounts()) + amounts
        return total

    def __mul__(self, times: int) -> "_Traffic":
        return _Traffic({collective: amounts * times for collective, amounts in self.items()})

    def named(self, source: str) -> "_Traffic":
        """The same, with a source where one is missing."""
        return _Traffic(
            {
                collective
                if collective.source
                else dataclasses.replace(collective, source=source): amounts
                for collective, amounts in self.items()
            }
        )

    def wire(self) -> float:
        return sum(amounts.wire for amounts in self.values())


def collectives(hlo: str, mesh: Mapping[str, int]) -> dict[Collective, Amounts]:
    """All of a compiled program, `jax.stages.Compiled.as_text()`, as often as its loops run them.

    Those that start and end in two instructions count at the start. A sum of which each chip keeps
    a slice at once, in one fused operation, counts as a reduce-scatter. Groups of one are left out.

    Args:
        hlo: the text.
        mesh: sizes of the axes of the mesh that it was compiled for, in order.
    """
    program = Program(hlo)
    later = _later_pieces(program)

    def measure(computation: Computation, name: str) -> Iterator[_Traffic]:
        kind = computation.opcode(name).removesuffix("-start")
        if kind in KINDS and name not in later:
            found = _one(_reduced(kind, computation, name), computation, name, mesh)
            yield _Traffic({one: amounts for one, amounts in found.items() if one.group > 1})
        fused = re.search(r"calls=%([\w.\-]+)", computation[name])
        inner = program.computations.get(fused[1], Computation()) if fused else Computation()
        for part in inner:
            for traffic in measure(inner, part):
                yield traffic.named(_source(computation[name]))

    return dict(program.add_up(measure, _Traffic(), _Traffic.wire))


def _later_pieces(program: Program) -> set[str]:
    """XLA:TPU fuses the pieces of one collective into one computation after the other."""
    first: dict[tuple[str, ...], str] = {}
    names = set()
    for computation in program.computations.values():
        for name, line in computation.items():
            piece = re.search(r'channel_id=(\d+).*chain_id="(\d+)"', line)
            if piece and first.setdefault(piece.groups(), name) != name:
                names.add(name)
    return names


def _one(kind: str, computation: Computation, name: str, mesh: Mapping[str, int]) -> _Traffic:
    line = computation[name]
    groups = replica_groups(line, math.prod(mesh.values()))
    size = len(groups[0])
    operands = [*map(computation.bytes, computation.operands(name))]
    whole = sum(operands) * size if kind == "all-gather" else sum(operands)
    if kind == "ragged-all-to-all":  # One of them has room for what is never sent.
        whole = min(operands[:2])
    others = (size - 1) / size
    share = {"all-reduce": 2 * others, "collective-permute": 1.0}.get(kind, others)
    collective = Collective(kind, crossed_axes(groups, mesh), size, _source(line))
    return _Traffic({collective: Amounts(1, whole, share * whole)})


def _reduced(kind: str, computation: Computation, name: str) -> str:
    """A sum that ends a computation as a slice of itself is what XLA:TPU scatters by."""
    *_, result = computation
    last = computation.origin(result)
    slices = kind == "all-reduce" and computation.opcode(last) == "dynamic-slice"
    return "reduce-scatter" if slices and computation.operands(last)[0] == name else kind


def _source(line: str) -> str:
    found = re.search(r'op_name="([^"]*)"', line)
    return found[1] if found else ""
