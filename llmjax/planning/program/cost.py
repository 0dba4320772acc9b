"""Cost of a compiled TPU program, from its compiler's estimates, without running it."""

import dataclasses
import re
from collections.abc import Iterator

from llmjax.planning.program.hlo import Computation, Program


@dataclasses.dataclass(frozen=True)
class ProgramCost:
    """Cost on one chip.

    Attributes:
        cycles: the compiler's estimate for its own instructions in sequence, without collectives
            and kernels.
        kernel_calls: how often Pallas kernels run.
        kernel_flops: FLOPs of all these runs, from their `pl.CostEstimate`.
        kernel_bytes: bytes that they read and write, likewise.
        uncounted_loops: loops of unknown trip count, which are counted once.
    """

    cycles: float = 0.0
    kernel_calls: int = 0
    kernel_flops: float = 0.0
    kernel_bytes: float = 0.0
    uncounted_loops: int = 0

    def __add__(self, other: "ProgramCost") -> "ProgramCost":
        sums = zip(dataclasses.astuple(self), dataclasses.astuple(other), strict=True)
        return ProgramCost(*(one + another for one, another in sums))

    def __mul__(self, times: int) -> "ProgramCost":
        return ProgramCost(*(times * number for number in dataclasses.astuple(self)))


def program_cost(hlo: str) -> ProgramCost:
    """Adds up a compiled program, `jax.stages.Compiled.as_text()`, times the trip counts of loops.

    Of a conditional, the most expensive branch counts.
    """
    program = Program(hlo)

    def measure(computation: Computation, name: str) -> Iterator[ProgramCost]:
        line = computation[name]
        yield ProgramCost(cycles=_number("estimated_cycles", line))
        if 'custom_call_target="tpu_custom_call"' in line:
            yield ProgramCost(0.0, 1, _number("flops", line), _number("bytes_accessed", line))
        if computation.opcode(name) == "while" and program.trips(computation, name) is None:
            yield ProgramCost(uncounted_loops=1)

    return program.add_up(measure, ProgramCost(), lambda cost: (cost.cycles, cost.kernel_flops))


def _number(name: str, line: str) -> float:
    found = re.search(rf'"{name}":"(\d+)"', line)
    return float(found[1]) if found else 0.0
