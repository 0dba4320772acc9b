"""What a program for TPUs costs, by the estimates of its compiler, without running it."""

import dataclasses
import functools
import re
from collections.abc import Iterator


@dataclasses.dataclass(frozen=True)
class ProgramCost:
    """Of one chip.

    Attributes:
        cycles: the compiler's estimate for its own instructions, one after the other, without
            transfers between chips; it knows nothing of kernels.
        kernel_calls: how often Pallas kernels run.
        kernel_flops: of all these runs, by their `pl.CostEstimate`.
        kernel_bytes: read and written by them, likewise.
        uncounted_loops: how many loops were counted once, since they run until something happens.
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
    """Adds up a compiled program, `jax.stages.Compiled.as_text()`, every loop as often as it runs.

    Of a condition's branches the dearest counts.
    """
    return _Program(hlo).cost()


def _number(name: str, line: str) -> float:
    found = re.search(rf'"{name}":"(\d+)"', line)
    return float(found[1]) if found else 0.0


class _Computation(dict[str, str]):
    """What each name stands for; the last is the result."""

    def operands(self, name: str) -> list[str]:
        """The names that an instruction is of."""
        # A tuple's type has brackets too, and no % in them.
        found = re.search(r" [\w\-]+\(([^()]*)\)", self[name])
        return re.findall(r"%([\w.\-]+)", found[1]) if found else []

    def origin(self, name: str) -> str:
        """What a name is a copy of."""
        while re.search(r" (?:copy|copy-start|copy-done|bitcast)\(", self[name]):
            (name,) = self.operands(name)
        return name

    def constant(self, name: str) -> int | None:
        """The integer that a name stands for, if it is known here."""
        found = re.search(r" constant\((-?\d+)\)", self[self.origin(name)])
        return int(found[1]) if found else None

    def element(self, name: str) -> int | None:
        """Which element of the computation's argument a name is, if it is one."""
        found = re.search(r" get-tuple-element\(.*index=(\d+)", self[self.origin(name)])
        return int(found[1]) if found else None


class _Program:
    def __init__(self, hlo: str) -> None:
        self.computations: dict[str, _Computation] = {}
        self.entry = current = _Computation()
        for line in hlo.splitlines():
            start = re.match(r"(ENTRY )?%([\w.\-]+) \(.*\{$", line)
            instruction = re.match(r"\s+(?:ROOT )?%([\w.\-]+) = (.*)", line)
            if start:
                current = self.computations[start[2]] = _Computation()
                self.entry = current if start[1] else self.entry
            elif instruction:
                current[instruction[1]] = " " + instruction[2]

    def cost(self) -> ProgramCost:
        return self._of(self.entry)

    def _of(self, computation: _Computation) -> ProgramCost:
        return functools.reduce(ProgramCost.__add__, self._parts(computation), ProgramCost())

    def _parts(self, computation: _Computation) -> Iterator[ProgramCost]:
        for name, line in computation.items():
            yield ProgramCost(cycles=_number("estimated_cycles", line))
            if 'custom_call_target="tpu_custom_call"' in line:
                yield ProgramCost(0.0, 1, _number("flops", line), _number("bytes_accessed", line))
            called = dict(re.findall(r"(condition|body|to_apply)=%([\w.\-]+)", line))
            if "body" in called:
                body = self.computations[called["body"]]
                times = self._trips(computation, name, self.computations[called["condition"]], body)
                yield self._of(body) * (1 if times is None else times)
                yield ProgramCost(uncounted_loops=int(times is None))
            elif " call(" in line:
                yield self._of(self.computations[called["to_apply"]])
            branches = re.search(r"branch_computations=\{([^}]*)\}", line)
            if branches:
                costs = [
                    self._of(self.computations[b]) for b in re.findall(r"%([\w.\-]+)", branches[1])
                ]
                yield max(costs, key=lambda cost: (cost.cycles, cost.kernel_flops))

    def _trips(self, outside: _Computation, name: str, condition, body) -> int | None:
        """How often a loop runs that counts in an element of what it hands on; None of others."""
        (state,) = outside.operands(name)
        initial = outside.operands(outside.origin(state))

        def known(computation, operand):
            """A constant there, or what came in from outside."""
            value, element = computation.constant(operand), computation.element(operand)
            if value is None and element is not None:
                return outside.constant(initial[element])
            return value

        (*_, test), (*_, result) = condition, body
        if "direction=LT" not in condition[test]:
            return None
        counter, limit = condition.operands(test)
        element, stop = condition.element(counter), known(condition, limit)
        if element is None or stop is None:
            return None
        start = outside.constant(initial[element])
        following = body.origin(body.operands(result)[element])
        steps = [known(body, operand) for operand in body.operands(following)]
        step = next((s for s in reversed(steps) if s is not None), None)
        if start is None or step is None or " add(" not in body[following]:
            return None
        return max(0, -(-(stop - start) // step))
