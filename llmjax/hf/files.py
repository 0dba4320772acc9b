"""Reads safetensors files as memory-mapped tensors by name.

A file is a little-endian uint64, a JSON header of that many bytes with every tensor's dtype, shape
and offsets, and the data (section "Format" of the format's documentation). Checkpoint files are
untrusted: a file is accepted only if its whole header is consistent, and nothing is unpickled.
"""

import collections
import dataclasses
import json
import math
import os
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np

SINGLE_FILE = "model.safetensors"
INDEX_FILE = "model.safetensors.index.json"
HEADER_LIMIT = 100_000_000

DTYPES = {
    "F64": np.dtype("<f8"),
    "F32": np.dtype("<f4"),
    "F16": np.dtype("<f2"),
    "BF16": np.dtype(ml_dtypes.bfloat16),
    "I64": np.dtype("<i8"),
    "I32": np.dtype("<i4"),
    "I16": np.dtype("<i2"),
    "I8": np.dtype("i1"),
    "U8": np.dtype("u1"),
    "BOOL": np.dtype("?"),
}

_MAX_RANK = 32
_PICKLED = ("*.bin", "*.bin.index.json", "*.pt", "*.pth", "*.ckpt", "*.h5", "*.msgpack")


@dataclasses.dataclass(frozen=True)
class _Entry:
    """A tensor: the bytes [begin, end) of its file's mapped data."""

    path: Path
    data: np.ndarray
    dtype: np.dtype
    shape: tuple[int, ...]
    begin: int
    end: int

    def view(self, name: str) -> np.ndarray:
        values = self.data[self.begin : self.end]
        if self.dtype == np.bool_ and values.max(initial=0) > 1:
            raise ValueError(f"{_where(self.path, name)} is BOOL and has bytes other than 0 and 1")
        return values.view(self.dtype).reshape(self.shape)


class StoredTensors(Mapping[str, np.ndarray]):
    """Tensors by name, as read-only views of mapped files; data is read when it is used."""

    def __init__(self, entries: Mapping[str, _Entry]) -> None:
        self._entries = entries

    def __getitem__(self, name: str) -> np.ndarray:
        return self._entries[name].view(name)

    def __contains__(self, name: object) -> bool:
        return name in self._entries

    def __iter__(self) -> Iterator[str]:
        return iter(self._entries)

    def __len__(self) -> int:
        return len(self._entries)

    @property
    def nbytes(self) -> int:
        """Bytes of all tensors together."""
        return sum(entry.end - entry.begin for entry in self._entries.values())


def open_file(path: str | Path) -> StoredTensors:
    """Opens one safetensors file.

    Raises:
        ValueError: the file is not readable; its header is longer than the file or than 100 MB, or
            is not a JSON object without duplicate keys; a tensor has an unknown dtype, or a shape
            that does not match its offsets; bytes belong to no tensor or to two. The message names
            the file and the tensor.
    """
    return StoredTensors(_entries(Path(path)))


def open_directory(directory: str | Path) -> StoredTensors:
    """Opens a checkpoint: model.safetensors, or the shards in its index.

    Raises:
        ValueError: as for `open_file`; both or neither are present; the index names a file that is
            not in the directory, or a tensor that is not in the named file.
    """
    directory = Path(directory)
    if not directory.is_dir():
        raise ValueError(f"{directory} is not a directory")
    single, index = directory / SINGLE_FILE, directory / INDEX_FILE
    if single.is_file() and index.is_file():
        raise ValueError(
            f"{directory} has both {SINGLE_FILE} and {INDEX_FILE}: remove the stale one"
        )
    if single.is_file():
        return open_file(single)
    if index.is_file():
        return _open_shards(directory, index)
    pickled = sorted({path.name for pattern in _PICKLED for path in directory.glob(pattern)})
    if pickled:
        raise ValueError(
            f"{directory} has {pickled[0]} and no {SINGLE_FILE}. Such a file can run code when it "
            "is loaded, so it is refused. Use a safetensors revision, or convert it where you "
            "trust it: transformers' from_pretrained(…), then save_pretrained(…, "
            "safe_serialization=True)"
        )
    raise ValueError(f"{directory} has neither {SINGLE_FILE} nor {INDEX_FILE}")


def read_json(path: Path, limit: int) -> dict[str, Any]:
    """Reads a JSON object from a file of at most `limit` bytes.

    Raises:
        ValueError: the file is missing or too large, is not a JSON object, or repeats a key.
    """
    try:
        if not path.is_file():
            raise ValueError(f"{path} does not exist, or is not a file")
        if (size := path.stat().st_size) > limit:
            raise ValueError(f"{path} has {size} bytes; the limit is {limit}")
        return _parse(path.read_bytes(), f"{path}")
    except OSError as error:
        raise ValueError(f"{path} cannot be read: {error.strerror}") from error


def _entries(path: Path) -> dict[str, _Entry]:
    if not path.is_file():
        raise ValueError(f"{path} does not exist, or is not a file")
    try:
        with path.open("rb") as stream:
            size = os.fstat(stream.fileno()).st_size
            if size < 8:
                raise ValueError(f"{path} has {size} bytes, too few for a safetensors file")
            mapped = np.memmap(stream, np.uint8, mode="r").view(np.ndarray)
    except OSError as error:
        raise ValueError(f"{path} cannot be read: {error.strerror}") from error
    length = int.from_bytes(mapped[:8].tobytes(), "little")
    if length > min(HEADER_LIMIT, len(mapped) - 8):
        raise ValueError(
            f"{path} claims a header of {length} bytes; it has {len(mapped) - 8} bytes in all, and "
            f"the limit is {HEADER_LIMIT}. It is truncated, or not a safetensors file"
        )
    header = _parse(mapped[8 : 8 + length].tobytes(), f"the header of {path}")
    metadata = header.pop("__metadata__", {})
    if not isinstance(metadata, dict) or not all(isinstance(v, str) for v in metadata.values()):
        raise ValueError(f"{path}: __metadata__ must be an object of strings")
    data = mapped[8 + length :]
    entries = {name: _entry(path, name, fields, data) for name, fields in header.items()}
    _check_cover(path, entries, len(data))
    return entries


def _entry(path: Path, name: str, fields: Any, data: np.ndarray) -> _Entry:
    where = _where(path, name)
    if not isinstance(fields, dict) or fields.keys() != {"dtype", "shape", "data_offsets"}:
        raise ValueError(f"{where} must have dtype, shape and data_offsets, and nothing else")
    dtype, shape, offsets = fields["dtype"], fields["shape"], fields["data_offsets"]
    if not isinstance(dtype, str) or dtype not in DTYPES:
        raise ValueError(f"{where} has dtype {dtype!s:.40}; supported are {', '.join(DTYPES)}")
    if not _are_sizes(shape) or len(shape) > _MAX_RANK:
        raise ValueError(
            f"{where} has shape {shape!s:.200}; it must be a list of at most {_MAX_RANK} "
            "non-negative integers"
        )
    if not _are_sizes(offsets) or len(offsets) != 2 or not offsets[0] <= offsets[1] <= len(data):
        raise ValueError(
            f"{where} has data_offsets {offsets!s:.200}; they must be two integers in order, "
            f"within the {len(data)} bytes of data"
        )
    begin, end = offsets
    itemsize = DTYPES[dtype].itemsize
    # Zeros are left out, since numpy must be able to address an empty array's other axes too.
    addressed = itemsize * math.prod(size for size in shape if size)
    if addressed > sys.maxsize or itemsize * math.prod(shape) != end - begin:
        raise ValueError(
            f"{where} has shape {shape!s:.200} of {dtype}, which does not fit its "
            f"{end - begin} bytes of data"
        )
    return _Entry(path, data, DTYPES[dtype], tuple(shape), begin, end)


def _are_sizes(values: Any) -> bool:
    """Whether the value is a list of integers that can be array sizes (True and 1.0 are not)."""
    return isinstance(values, list) and all(
        type(n) is int and 0 <= n <= sys.maxsize for n in values
    )


def _check_cover(path: Path, entries: Mapping[str, _Entry], size: int) -> None:
    """Raises ValueError unless the tensors fill the data without gaps or overlaps."""
    position = 0
    for name, entry in sorted(entries.items(), key=lambda item: (item[1].begin, item[1].end)):
        if entry.begin != position:
            what = "overlaps the tensor before it" if entry.begin < position else "follows a gap"
            raise ValueError(f"{_where(path, name)} {what}: it begins at {entry.begin}")
        position = entry.end
    if position != size:
        raise ValueError(f"{path}: its last {size - position} bytes belong to no tensor")


def _open_shards(directory: Path, index: Path) -> StoredTensors:
    places = read_json(index, HEADER_LIMIT).get("weight_map")
    if not isinstance(places, dict) or not places:
        raise ValueError(f"{index}: weight_map must be an object of tensor name: file name")
    present = {path.name for path in directory.iterdir() if path.is_file()}
    shards: dict[str, dict[str, _Entry]] = {}
    for name, file in places.items():
        # Names listed by the directory contain no "/" and are not "..".
        if not isinstance(file, str) or not file.endswith(".safetensors") or file not in present:
            raise ValueError(
                f"{_where(index, name)} is said to be in {file!r:.200}, which is not a "
                f"safetensors file of {directory}"
            )
        if file not in shards:
            shards[file] = _entries(directory / file)
        if name not in shards[file]:
            raise ValueError(f"{_where(index, name)} is not in {file}, where the index says it is")
    for file, entries in shards.items():
        for name in entries:
            if places.get(name) != file:
                raise ValueError(f"{_where(directory / file, name)} is not listed in {INDEX_FILE}")
    counts = {file.rpartition("-of-")[2] for file in shards if "-of-" in file}
    for file in sorted(present - shards.keys()):
        if "-of-" in file and file.rpartition("-of-")[2] in counts:
            raise ValueError(f"{index} names no tensor of {file}, a shard of the same checkpoint")
    return StoredTensors({name: shards[file][name] for name, file in places.items()})


def _parse(text: bytes, what: str) -> dict[str, Any]:
    try:
        value = json.loads(text.decode(), object_pairs_hook=_without_duplicates)
        if rb"\ud" in text.lower():  # rejects unpaired surrogates, which are not valid text
            json.dumps(value, ensure_ascii=False).encode()
    except RecursionError:
        raise ValueError(f"{what} is nested too deeply") from None
    except ValueError as error:
        raise ValueError(f"{what} is not valid JSON: {error}") from error
    if not isinstance(value, dict):
        raise ValueError(f"{what} must be a JSON object")
    return value


def _without_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    result = dict(pairs)
    if len(result) < len(pairs):
        twice, _ = collections.Counter(key for key, _ in pairs).most_common(1)[0]
        raise ValueError(f"the key {twice!r:.200} occurs twice")
    return result


def _where(path: Path, name: str) -> str:
    return f"{path}: tensor {name!r:.200}"
