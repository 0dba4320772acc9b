"""Compiles a program ahead of time for chips that need not be present: memory and step time."""

import dataclasses
import re
from typing import Any

import jax

from llmjax.planning.hardware import Chip
from llmjax.planning.program import ProgramCost

_UNITS = {"": 1, "K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40}


@dataclasses.dataclass(frozen=True)
class OutOfMemory:
    """The compiler's report that a program does not fit on the chip.

    Attributes:
        needed: bytes that the message names: those of the whole program or of its temporaries.
        available: bytes.
        message: the compiler's message.
    """

    needed: float | None
    available: float | None
    message: str


def compile_ahead(lowered: jax.stages.Lowered) -> jax.stages.Compiled | OutOfMemory:
    """Compiles a program. Running out of memory is a result, not an error.

    Raises:
        jax.errors.JaxRuntimeError: compilation fails for another reason.
    """
    try:
        return lowered.compile()
    except jax.errors.JaxRuntimeError as error:
        found = out_of_memory(str(error))
        if found is None:
            raise
        return found


def out_of_memory(message: str) -> OutOfMemory | None:
    """Parses XLA's message that a program is too large for the chip; None for any other message."""
    if "RESOURCE_EXHAUSTED" not in message:
        return None
    first = message.split("RESOURCE_EXHAUSTED: ", 1)[-1].strip().splitlines()[0]
    sizes = [float(n) * _UNITS[unit] for n, unit in re.findall(r"(\d+\.?\d*)([KMGT])\b", first)]
    needed, available = (*sizes, None, None)[:2]
    return OutOfMemory(needed, available, first)


def peak_bytes(compiled: jax.stages.Compiled) -> float:
    """Peak bytes on a device: arguments, outputs that alias no argument, and temporaries."""
    memory: Any = compiled.memory_analysis()
    new = memory.output_size_in_bytes - memory.alias_size_in_bytes
    return memory.argument_size_in_bytes + new + memory.temp_size_in_bytes


@dataclasses.dataclass(frozen=True)
class Time:
    """Seconds that a step takes on a TPU, from the compiler's estimates and the data sheet.

    Attributes:
        compute: XLA's own instructions, from `estimated_cycles`.
        kernels: lower bound for Pallas kernels, at the peak of the matrix units or of the memory.
        wire: lower bound for communication, with all links of a chip in use.
    """

    compute: float
    kernels: float
    wire: float

    @property
    def hidden(self) -> float:
        """Step time if communication overlaps fully with computation."""
        return max(self.compute + self.kernels, self.wire)

    @property
    def exposed(self) -> float:
        """Step time if nothing overlaps."""
        return self.compute + self.kernels + self.wire


def step_time(cost: ProgramCost, wire: float, chip: Chip) -> Time | None:
    """Estimates a program that sends `wire` bytes; None if the compiler gives no cycle counts."""
    if not chip.clock:
        return None
    flops, bandwidth, network = (
        rate / chip.parts for rate in (chip.flops, chip.bandwidth, chip.network)
    )
    kernels = max(cost.kernel_flops / flops, cost.kernel_bytes / bandwidth)
    return Time(cost.cycles / chip.clock, kernels, wire / network)
