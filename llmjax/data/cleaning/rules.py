"""Heuristic steps as lists of rules: a measurement, and whether it is a fault."""

import dataclasses
from collections.abc import Iterable, Sequence
from typing import Any

from llmjax.data.cleaning.document import Document, Rejected

# A reason for rejection, the deciding number, and whether the rule is broken.
Rule = tuple[str, float, bool]


def judge(document: Document, rules: Iterable[Rule]) -> Document | Rejected:
    """The document, or its rejection by the first broken rule; later rules are not evaluated."""
    for reason, score, broken in rules:
        if broken:
            return Rejected(document, reason, score)
    return document


def share(part: float, whole: float) -> float:
    """`part / whole`, or 0 if `whole` is 0."""
    return part / whole if whole else 0.0


def require_ranges(step: Any, **ranges: tuple[float, float]) -> None:
    """Raises ValueError unless all numbers in these fields of a step are within their range.

    Args:
        step: a dataclass with a `name`.
        ranges: (minimum, maximum) by field. A tuple field holds several numbers.
    """
    unknown = ranges.keys() - {field.name for field in dataclasses.fields(step)}
    assert not unknown, unknown
    for field, (least, most) in ranges.items():
        value = getattr(step, field)
        for number in value if isinstance(value, Sequence) else (value,):
            if not least <= number <= most:
                bounds = f"from {least:g} to {most:g}" if most < float("inf") else f">= {least:g}"
                raise ValueError(f"{step.name}.{field}={value}: must be {bounds}")
