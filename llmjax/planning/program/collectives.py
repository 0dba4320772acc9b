"""The collectives of a program: kinds, bytes, and the mesh axes that they cross."""

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
    """A collective operation of a program.

    Attributes:
        kind: its name in XLA.
        axes: the mesh axes that it crosses.
        group: number of chips in a group.
        source: the model's operation that it belongs to, as JAX names it.
    """

    kind: str
    axes: tuple[str, ...]
    group: int
    source: str = ""


@dataclasses.dataclass(frozen=True)
class Amounts:
    """The amount of one collective per step on one chip.

    Attributes:
        calls: how often it runs.
        bytes: size of the whole array: the result of a gather, the operand of all others. For
            ragged-all-to-all, the smaller of operand and result.
        wire: lower bound of the bytes that a chip sends. In a group of n: (n-1)/n of the array for
            all-gather, reduce-scatter and all-to-all, twice that for all-reduce, and the whole
            array for collective-permute.
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
        """A copy in which collectives without a source get this one."""
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
    """Counts the collectives of a compiled program, times the trip counts of their loops.

    Asynchronous pairs count at their start. An all-reduce whose result each chip slices in the same
    fusion counts as a reduce-scatter. Groups of one are left out.

    Args:
        hlo: the text, `jax.stages.Compiled.as_text()`.
        mesh: axis sizes of the mesh that it was compiled for, in order.
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
    """The later pieces of collectives that XLA:TPU splits over a chain of fusions."""
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
    if kind == "ragged-all-to-all":  # One of the buffers has room for rows that are never sent.
        whole = min(operands[:2])
    others = (size - 1) / size
    share = {"all-reduce": 2 * others, "collective-permute": 1.0}.get(kind, others)
    collective = Collective(kind, crossed_axes(groups, mesh), size, _source(line))
    return _Traffic({collective: Amounts(1, whole, share * whole)})


def _reduced(kind: str, computation: Computation, name: str) -> str:
    """XLA:TPU expresses a reduce-scatter as an all-reduce and a slice that end a fusion."""
    *_, result = computation
    last = computation.origin(result)
    slices = kind == "all-reduce" and computation.opcode(last) == "dynamic-slice"
    return "reduce-scatter" if slices and computation.operands(last)[0] == name else kind


def _source(line: str) -> str:
    found = re.search(r'op_name="([^"]*)"', line)
    return found[1] if found else ""
