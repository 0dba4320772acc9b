"""Validates values from an untrusted config.json."""

import sys
import typing
from typing import Any

SIZE_LIMIT = 2**31 - 1


def check(name: str, value: Any, kind: Any) -> None:
    """Raises ValueError unless the value has the type and a plausible size."""
    if kind is bool and type(value) is not bool:
        raise ValueError(f"{name}={value!r:.100} must be true or false")
    if kind is int and not (type(value) is int and 0 <= value <= SIZE_LIMIT):
        raise ValueError(f"{name}={value!r:.100} must be an integer in [0, {SIZE_LIMIT}]")
    if kind is float and not (type(value) in (int, float) and abs(value) <= sys.float_info.max):
        raise ValueError(f"{name}={value!r:.100} must be a finite number")
    if typing.get_origin(kind) is typing.Literal and value not in typing.get_args(kind):
        raise ValueError(f"{name}={value!r:.100} must be one of {typing.get_args(kind)}")
