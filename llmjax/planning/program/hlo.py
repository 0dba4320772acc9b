"""The text of a compiled program: computations, instructions, and how often loops run."""

import re
from collections.abc import Callable, Iterator
from typing import Any, Protocol, Self, TypeVar

BITS = {"pred": 8, "bf16": 16, "c64": 64, "c128": 128}  # of types whose names do not say


class Amount(Protocol):
    """What instructions add up to."""

    def __add__(self, other: Self, /) -> Self: ...

    def __mul__(self, times: int, /) -> Self: ...


T = TypeVar("T", bound=Amount)


class Computation(dict[str, str]):
    """What each name stands for; the last is the result."""

    def opcode(self, name: str) -> str:
        """What an instruction does."""
        # A type has brackets too, of tuples and tiles, which nothing but a space goes before.
        found = re.search(r"[\s)}\]]([a-z][\w\-]*)\(", self[name])
        return found[1] if found else ""

    def operands(self, name: str) -> list[str]:
        """The names that an instruction is of."""
        # A tuple's type has brackets too, and no % in them.
        found = re.search(r" [\w\-]+\(([^()]*)\)", self[name])
        return re.findall(r"%([\w.\-]+)", found[1]) if found else []

    def bytes(self, name: str) -> float:
        """Of the array, or the arrays of a tuple, that a name stands for."""
        type_, _, _ = self[name].partition(f" {self.opcode(name)}(")
        arrays = re.findall(r"\b([a-z]+(\d+)?(?:e\w+)?)\[([\d,]*)\]", type_)
        return sum(_bits(kind, bits) * _size(shape) / 8 for kind, bits, shape in arrays)

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


def _bits(kind: str, bits: str) -> int:
    return BITS.get(kind) or int(bits or 0)


def _size(shape: str) -> int:
    size = 1
    for length in filter(None, shape.split(",")):
        size *= int(length)
    return size


class Program:
    """A program, as `jax.stages.Compiled.as_text()` has it."""

    def __init__(self, text: str) -> None:
        self.computations: dict[str, Computation] = {}
        self.entry = current = Computation()
        for line in text.splitlines():
            start = re.match(r"(ENTRY )?%([\w.\-]+) \(.*\{$", line)
            instruction = re.match(r"\s+(?:ROOT )?%([\w.\-]+) = (.*)", line)
            if start:
                current = self.computations[start[2]] = Computation()
                self.entry = current if start[1] else self.entry
            elif instruction:
                current[instruction[1]] = " " + instruction[2]

    def add_up(
        self,
        measure: Callable[[Computation, str], Iterator[T]],
        zero: T,
        dearest: Callable[[T], Any],
    ) -> T:
        """What all instructions add up to, those in a loop as often as it runs.

        Args:
            measure: amounts of an instruction, fused ones included, without those of loops, calls
                and branches.
            zero: nothing.
            dearest: the key by which one branch of a condition counts.
        """

        def of(computation: Computation) -> T:
            total = zero
            for name in computation:
                for amount in measure(computation, name):
                    total = total + amount
                for amount in called(computation, name):
                    total = total + amount
            return total

        def called(computation: Computation, name: str) -> Iterator[T]:
            line, opcode = computation[name], computation.opcode(name)
            names = dict(re.findall(r"(body|to_apply)=%([\w.\-]+)", line))
            if opcode == "while":
                times = self.trips(computation, name)
                yield of(self.computations[names["body"]]) * (1 if times is None else times)
            elif opcode == "call":
                yield of(self.computations[names["to_apply"]])
            elif opcode == "conditional":
                yield max((of(self.computations[b]) for b in _branches(line)), key=dearest)

        return of(self.entry)

    def trips(self, outside: Computation, name: str) -> int | None:
        """How often a loop runs: as the compiler says, which on TPUs it does not.

        There it is known of loops that count in an element of what they hand on; None of others.
        """
        told = re.search(r'"known_trip_count":\{"n":"(\d+)"\}', outside[name])
        if told:
            return int(told[1])
        parts = dict(re.findall(r"(condition|body)=%([\w.\-]+)", outside[name]))
        condition, body = (self.computations[parts[part]] for part in ("condition", "body"))
        (state,) = outside.operands(name)
        initial = outside.operands(outside.origin(state))

        def known(computation: Computation, operand: str) -> int | None:
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


def _branches(line: str) -> list[str]:
    """The computations of a condition: by number, or by truth."""
    listed = re.search(r"branch_computations=\{([^}]*)\}", line)
    if listed:
        return re.findall(r"%([\w.\-]+)", listed[1])
    return re.findall(r"(?:true|false)_computation=%([\w.\-]+)", line)
