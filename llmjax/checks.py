"""Checks that configurations share."""

import typing
from typing import Any


def require_choices(config: Any, prefix: str) -> None:
    """Raises ValueError unless every `Literal` field of a dataclass has one of its values.

    Args:
        config: the dataclass instance.
        prefix: what its fields are called by in messages, "model" say.
    """
    for name, annotation in typing.get_type_hints(type(config)).items():
        if typing.get_origin(annotation) is not typing.Literal:
            continue
        value, choices = getattr(config, name), typing.get_args(annotation)
        if value not in choices:
            known = ", ".join(map(str, choices))
            raise ValueError(f"{prefix}.{name}={value!r}: choose one of {known}")
