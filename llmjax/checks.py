"""Checks shared by configurations, and suggestions for misspelled names."""

import difflib
import typing
from collections.abc import Sequence
from typing import Any


def require_choices(config: Any, prefix: str) -> None:
    """Raises ValueError unless every `Literal` field of a dataclass has one of its values.

    Args:
        config: the dataclass instance.
        prefix: prefix of its fields in messages, such as "model".
    """
    for name, annotation in typing.get_type_hints(type(config)).items():
        if typing.get_origin(annotation) is not typing.Literal:
            continue
        value, choices = getattr(config, name), typing.get_args(annotation)
        if value not in choices:
            known = ", ".join(map(str, choices))
            raise ValueError(f"{prefix}.{name}={value!r}: choose one of {known}")


def require_at_least(least: int, config: Any, prefix: str, names: tuple[str, ...]) -> None:
    """Raises ValueError unless these fields of a dataclass are at least `least`."""
    for name in names:
        value = getattr(config, name)
        if not value >= least:
            what = "must not be negative" if least == 0 else f"must be at least {least}"
            raise ValueError(f"{prefix}.{name}={value}: {what}")


def nearest(name: str, names: Sequence[str], count: int = 3, separator: str = ".") -> list[str]:
    """The entries of `names` most similar to `name`, best first; dotted names also match by suffix.

    >>> nearest("learning_rate", ["steps", "optimizer.learning_rate"])
    ['optimizer.learning_rate']
    """

    def likeness(other: str) -> float:
        whole = difflib.SequenceMatcher(None, name, other).ratio()
        end, other_end = name.rpartition(separator)[2], other.rpartition(separator)[2]
        return max(whole, difflib.SequenceMatcher(None, end, other_end).ratio())

    ranked = sorted(names, key=likeness, reverse=True)
    return [other for other in ranked[:count] if likeness(other) >= 0.6]
