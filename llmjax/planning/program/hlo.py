"""Parses the text of a compiled program: computations, instructions and trip counts of loops."""

import re
from collections.abc import Callable, Iterator
from typing import Any, Protocol, Self, TypeVar

BITS = {"pred": 8, "bf16": 16, "c64": 64, "c128": 128}  # types whose names do not end in their bits


class Amount(Protocol):
    """A quantity that can be summed over instructions."""

    def __add__(self, other: Self, /) -> Self: ...

    def __mul__(self, times: int, /) -> Self: ...


T = TypeVar("T", bound=Amount)


class Computation(dict[str, str]):
    """Instructions by name; the last one is the root."""

    def opcode(self, name: str) -> str:
        """The operation of an instruction."""
        # Types of tuples and tiles also have parentheses, but no lower-case word before them.
        found = re.search(r"[\s)}\]]([a-z][\w\-]*)\(", self[name])
        return found[1] if found else ""

    def operands(self, name: str) -> list[str]:
        """The names of an instruction's operands."""
        # A tuple type has parentheses too, but no % in them.
        found = re.search(r" [\w\-]+\(([^()]*)\)", self[name])
        return re.findall(r"%([\w.\-]+)", found[1]) if found else []

    def bytes(self, name: str) -> float:
        """Bytes of the array, or of the arrays of a tuple, that an instruction returns."""
        type_, _, _ = self[name].partition(f" {self.opcode(name)}(")
        arrays = re.findall(r"\b([a-z]+(\d+)?(?:e\w+)?)\[([\d,]*)\]", type_)
        return sum(_bits(kind, bits) * _size(shape) / 8 for kind, bits, shape in arrays)

    def origin(self, name: str) -> str:
        """Follows copies and bitcasts to the instruction they start from."""
        while re.search(r" (?:copy|copy-start|copy-done|bitcast)\(", self[name]):
            (name,) = self.operands(name)
        return name

    def constant(self, name: str) -> int | None:
        """The integer constant that a name stands for, if known."""
        found = re.search(r" constant\((-?\d+)\)", self[self.origin(name)])
        return int(found[1]) if found else None

    def element(self, name: str) -> int | None:
        """The index of the argument's tuple element that a name stands for, if it is one."""
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
    """A program parsed from `jax.stages.Compiled.as_text()`."""

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
        """Sums all instructions, those in a loop times its trip count.

        Args:
            measure: amounts of an instruction, including its fusion but not the loops, calls and
                branches that it runs.
            zero: the empty sum.
            dearest: sort key; of a conditional, the branch with the largest key counts.
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
        """The trip count of a loop, or None if unknown.

        GPU and CPU compilers state it. On TPUs it follows from the bounds and the step of loops
        that count in an element of their state.
        """
        told = re.search(r'"known_trip_count":\{"n":"(\d+)"\}', outside[name])
        if told:
            return int(told[1])
        parts = dict(re.findall(r"(condition|body)=%([\w.\-]+)", outside[name]))
        condition, body = (self.computations[parts[part]] for part in ("condition", "body"))
        (state,) = outside.operands(name)
        initial = outside.operands(outside.origin(state))

        def known(computation: Computation, operand: str) -> int | None:
            """The value if it is a constant here or comes in from outside."""
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
    """The computations of a conditional, by index or by predicate."""
    listed = re.search(r"branch_computations=\{([^}]*)\}", line)
    if listed:
        return re.findall(r"%([\w.\-]+)", listed[1])
    return re.findall(r"(?:true|false)_computation=%([\w.\-]+)", line)
