"""Writes safetensors files atomically, with one tensor in memory at a time."""

import dataclasses
import json
import math
import os
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from llmjax.hf.files import DTYPES, INDEX_FILE, SINGLE_FILE

SHARD_BYTES = 5 * 10**9

_NAMES = {dtype: name for name, dtype in DTYPES.items()}
_PARTIAL = ".partial"
_WRITTEN = re.compile(r"model(-\d{5,}-of-\d{5,})?\.safetensors(\.index\.json)?(\.partial)?")


@dataclasses.dataclass(frozen=True)
class LazyTensor:
    """A tensor whose `read()` returns an array of the declared shape and dtype."""

    shape: tuple[int, ...]
    dtype: np.dtype
    read: Callable[[], np.ndarray]

    @property
    def nbytes(self) -> int:
        """Size in bytes."""
        return math.prod(self.shape) * self.dtype.itemsize


def stage(
    directory: Path,
    tensors: Mapping[str, LazyTensor],
    *,
    shard_bytes: int = SHARD_BYTES,
    advance: Callable[[int], None] = lambda nbytes: None,
) -> dict[Path, Path]:
    """Writes a checkpoint's files under temporary names, one tensor in memory at a time.

    Args:
        directory: an existing directory.
        tensors: tensors by name, in the order in which they fill the shards.
        shard_bytes: maximum data per file; a larger tensor gets a file of its own. A single file
            is called model.safetensors; several have an index.
        advance: called with the bytes of each tensor written.

    Returns:
        Temporary → final path, for `commit`; the index comes last.

    Raises:
        ValueError: `shard_bytes` is not positive, or safetensors does not support a tensor's dtype.
            On any exception, the temporary files are removed first.
    """
    if shard_bytes < 1:
        raise ValueError(f"shard_bytes={shard_bytes}: must be at least 1")
    _check_dtypes(tensors)
    shards = _split(tensors, shard_bytes)
    names = [SINGLE_FILE]
    if len(shards) > 1:
        count = len(shards)
        names = [f"model-{i:05d}-of-{count:05d}.safetensors" for i in range(1, count + 1)]
    staged = {}
    try:
        for file, shard in zip(names, shards, strict=True):
            partial = directory / (file + _PARTIAL)
            staged[partial] = directory / file
            _write_shard(partial, {name: tensors[name] for name in shard}, advance)
        if len(shards) > 1:
            partial = directory / (INDEX_FILE + _PARTIAL)
            staged[partial] = directory / INDEX_FILE
            index = {
                "metadata": {"total_size": sum(tensor.nbytes for tensor in tensors.values())},
                "weight_map": {n: f for f, shard in zip(names, shards, strict=True) for n in shard},
            }
            partial.write_text(json.dumps(index, indent=2, sort_keys=True) + "\n")
    except BaseException:
        for partial in staged:
            partial.unlink(missing_ok=True)
        raise
    return staged


def commit(directory: Path, staged: Mapping[Path, Path]) -> None:
    """Renames staged files to their final names, and removes those of the previous checkpoint."""
    for path in list(directory.iterdir()):
        if _WRITTEN.fullmatch(path.name) and path not in staged:
            path.unlink()
    for partial, final in staged.items():
        partial.replace(final)


def write_text(path: Path, text: str) -> None:
    """Writes a text file atomically."""
    partial = path.with_name(path.name + _PARTIAL)
    partial.write_text(text)
    partial.replace(path)


def _split(tensors: Mapping[str, LazyTensor], shard_bytes: int) -> list[list[str]]:
    """Tensor names of each shard, filled in order."""
    shards: list[list[str]] = [[]]
    filled = 0
    for name, tensor in tensors.items():
        if shards[-1] and filled + tensor.nbytes > shard_bytes:
            shards.append([])
            filled = 0
        shards[-1].append(name)
        filled += tensor.nbytes
    return shards


def write_file(path: Path, tensors: Mapping[str, LazyTensor]) -> None:
    """Writes one safetensors file atomically.

    Raises:
        ValueError: safetensors does not support a tensor's dtype.
    """
    _check_dtypes(tensors)
    partial = path.with_name(path.name + _PARTIAL)
    try:
        _write_shard(partial, tensors, lambda nbytes: None)
    except BaseException:
        partial.unlink(missing_ok=True)
        raise
    partial.replace(path)


def _check_dtypes(tensors: Mapping[str, LazyTensor]) -> None:
    for name, tensor in tensors.items():
        if tensor.dtype not in _NAMES or name == "__metadata__":
            raise ValueError(f"tensor {name!r} of {tensor.dtype}: not supported by safetensors")


def _write_shard(
    path: Path, tensors: Mapping[str, LazyTensor], advance: Callable[[int], None]
) -> None:
    # Wide types first, after a header padded to a multiple of 8 bytes: every tensor is aligned.
    order = sorted(tensors.items(), key=lambda item: -item[1].dtype.itemsize)
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    position = 0
    for name, tensor in order:
        header[name] = {
            "dtype": _NAMES[tensor.dtype],
            "shape": list(tensor.shape),
            "data_offsets": [position, position + tensor.nbytes],
        }
        position += tensor.nbytes
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    with path.open("wb") as stream:
        stream.write(len(text).to_bytes(8, "little") + text)
        for name, tensor in order:
            value = np.ascontiguousarray(tensor.read())
            # ascontiguousarray turns a scalar into shape [1].
            if value.size != math.prod(tensor.shape) or value.dtype != tensor.dtype:
                raise ValueError(f"tensor {name!r} is {value.dtype} {value.shape}, not as declared")
            stream.write(value.reshape(-1).view(np.uint8).data)
            advance(tensor.nbytes)
            del value  # frees it before the next one is read
        stream.flush()
        os.fsync(stream.fileno())
