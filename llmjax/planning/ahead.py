"""A program compiled ahead of time, for chips that need not be there: does it fit, and how fast."""

import dataclasses
import re
from typing import Any

import jax

from llmjax.planning.hardware import Chip
from llmjax.planning.program import ProgramCost

_UNITS = {"": 1, "K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40}


@dataclasses.dataclass(frozen=True)
class OutOfMemory:
    """Why a program has no place on a chip.

    Attributes:
        needed: bytes, of what the compiler names in its message: all, or the temporary arrays.
        available: bytes.
        message: the compiler's.
    """

    needed: float | None
    available: float | None
    message: str


def compile_ahead(lowered: jax.stages.Lowered) -> jax.stages.Compiled | OutOfMemory:
    """Compiles; a program that does not fit is an answer.

    Raises:
        jax.errors.JaxRuntimeError: the compiler fails for another reason.
    """
    try:
        return lowered.compile()
    except jax.errors.JaxRuntimeError as error:
        found = out_of_memory(str(error))
        if found is None:
            raise
        return found


def out_of_memory(message: str) -> OutOfMemory | None:
    """What XLA says of a program too large for the chip; None if it says something else."""
    if "RESOURCE_EXHAUSTED" not in message:
        return None
    first = message.split("RESOURCE_EXHAUSTED: ", 1)[-1].strip().splitlines()[0]
    sizes = [float(n) * _UNITS[unit] for n, unit in re.findall(r"(\d+\.?\d*)([KMGT])\b", first)]
    needed, available = (*sizes, None, None)[:2]
    return OutOfMemory(needed, available, first)


def peak_bytes(compiled: jax.stages.Compiled) -> float:
    """Bytes that a device holds at most: what comes in, what is new, and what is in between."""
    memory: Any = compiled.memory_analysis()
    new = memory.output_size_in_bytes - memory.alias_size_in_bytes
    return memory.argument_size_in_bytes + new + memory.temp_size_in_bytes


@dataclasses.dataclass(frozen=True)
class Time:
    """Seconds of a step of a TPU, by the compiler's estimates and data sheets.

    Attributes:
        compute: of XLA's own instructions, by `estimated_cycles`.
        kernels: of Pallas kernels, at the rate of the matrix units or of the memory: at least.
        wire: of all that is sent, over all links of a chip at once: at least.
    """

    compute: float
    kernels: float
    wire: float

    @property
    def hidden(self) -> float:
        """If all that can be sent during computation is."""
        return max(self.compute + self.kernels, self.wire)

    @property
    def exposed(self) -> float:
        """If nothing is."""
        return self.compute + self.kernels + self.wire


def step_time(cost: ProgramCost, wire: float, chip: Chip) -> Time | None:
    """Of a program that sends `wire` bytes; None for chips whose compiler estimates nothing."""
    if not chip.clock:
        return None
    flops, bandwidth, network = (
        rate / chip.parts for rate in (chip.flops, chip.bandwidth, chip.network)
    )
    kernels = max(cost.kernel_flops / flops, cost.kernel_bytes / bandwidth)
    return Time(cost.cycles / chip.clock, kernels, wire / network)
