"""Tile sizes that were measured to be the fastest, by kind of device.

`tools/tune_kernels.py` measures them on a device and writes them to `tuned.json`:

    {device kind: {kernel: {case: {field: size}}}}

On other devices and for other cases, kernels use their own defaults.
"""

import contextlib
import contextvars
import functools
import json
import pathlib
from collections.abc import Iterator, Mapping
from typing import Any, TypeVar

import jax.numpy as jnp

from llmjax import mesh

FILE = pathlib.Path(__file__).with_name("tuned.json")
Sizes = TypeVar("Sizes", bound=tuple)
_trial: contextvars.ContextVar[Mapping[str, dict[str, int]]] = contextvars.ContextVar("trial")


def case(dtype: Any, channels: int) -> str:
    """The key for sizes: the precision, and the channels rounded up to a power of two."""
    return f"{jnp.dtype(dtype).name}, {1 << max(0, channels - 1).bit_length()} channels"


def sizes(kernel: str, case: str, default: Sizes) -> Sizes:
    """The sizes of a kernel on the current kind of device.

    Args:
        kernel: operation.implementation, or operation.implementation.result if there are several.
        case: from `case`.
        default: a named tuple of sizes, for those that were not measured.

    Raises:
        ValueError: the table has a size that the kernel does not have.
    """
    found = _trial.get({}).get(kernel)
    if found is None:
        found = table(FILE).get(mesh.device_kind(), {}).get(kernel, {}).get(case, {})
    fields: dict[str, Any] = default._asdict()  # type: ignore[attr-defined]
    if not found.keys() <= fields.keys():
        raise ValueError(f"{FILE.name}: {kernel} has the sizes {list(fields)}, not {list(found)}")
    return type(default)(**fields | found)


@contextlib.contextmanager
def trial(kernel: str, found: dict[str, int]) -> Iterator[None]:
    """A context in which a kernel is traced with these sizes."""
    token = _trial.set({**_trial.get({}), kernel: found})
    try:
        yield
    finally:
        _trial.reset(token)


@functools.cache
def table(file: pathlib.Path) -> dict[str, Any]:
    """The contents of the file."""
    return json.loads(file.read_text())
