"""A manifest of sizes and digests that detects every change of a folder's files.

The digest is the 128-bit XXH3: it detects errors of disks and networks at the speed of reading, but
does not protect against an adversary. Files are digested in parts, so that cores share large files
and processes share all files. The manifest protects itself: its text must be exactly the rendering
of its content, including its own digest.
"""

import concurrent.futures
import contextlib
import io
import json
import os
import re
from collections.abc import Callable, Collection, Sequence
from typing import Any

import xxhash
from etils import epath

_MANIFEST = "manifest.json"
_PART = 32 << 20  # bytes per digest
_READ = 1 << 20

# name → [size, [digest of each part]]
_Files = dict[str, list[Any]]


class DamagedError(ValueError):
    """A folder does not agree with its manifest."""


def write(
    folder: epath.Path,
    *,
    ignore: Collection[str] = (),
    process_index: int = 0,
    process_count: int = 1,
    barrier: Callable[[str], None] = lambda _: None,
) -> None:
    """Writes the manifest of all files under `folder` except `ignore`.

    All processes call it. Each reads the files that Orbax wrote for it; process 0 also reads the
    rest and writes the manifest.

    Args:
        folder: the folder, whose files no longer change.
        ignore: names at its top level to leave out.
        process_index: index of this process.
        process_count: number of processes that call it.
        barrier: returns when all processes have called it with the same name.

    Raises:
        DamagedError: a file was not read by any process.
    """
    files = {name: path for name, path in _files(folder).items() if name not in ignore}
    own = {n: path for n, path in files.items() if _writer(n, process_count) == process_index}
    measured = _measure(own)
    others = [folder / f"manifest.{index}.json" for index in range(1, process_count)]
    if process_index:
        write_durably(others[process_index - 1], _render(measured).encode())
    barrier("digests")
    if process_index:
        return
    for path in others:
        measured |= _parse(path)
        path.unlink()
    if unread := sorted(files.keys() ^ measured.keys()):
        raise DamagedError(f"{folder}: {unread[0]} appeared or vanished while it was being saved")
    write_durably(folder / _MANIFEST, _render(measured).encode())


def verify(folder: epath.Path, *, process_index: int = 0, process_count: int = 1) -> None:
    """Verifies every file against the manifest; each of several processes reads a share.

    Raises:
        DamagedError: a file is missing or was added, or its size or bytes changed, or the manifest
            is damaged; the first difference is named.
    """
    expected = outline(folder)
    files = _files(folder)
    parts = [(name, i) for name in sorted(expected) for i in range(len(expected[name][1]))]
    parts = parts[process_index::process_count]
    digests = _digest([(files[name], i) for name, i in parts])
    for (name, i), digest in zip(parts, digests, strict=True):
        if digest != expected[name][1][i]:
            raise DamagedError(f"{folder}: the bytes of {name} differ from those saved")


def outline(folder: epath.Path) -> _Files:
    """The manifest's content, after verifying names and sizes only.

    Raises:
        DamagedError: as in `verify`, except for changed bytes.
    """
    path = folder / _MANIFEST
    if not path.exists():
        raise DamagedError(f"{folder} has no {_MANIFEST}")
    expected = _parse(path)
    files = _files(folder)
    if missing := sorted(expected.keys() - files.keys()):
        raise DamagedError(f"{folder}: {missing[0]} is missing")
    if added := sorted(files.keys() - expected.keys()):
        raise DamagedError(f"{folder}: {added[0]} is not in its manifest")
    for name, [size, _] in expected.items():
        if (found := files[name].stat().length) != size:
            raise DamagedError(f"{folder}: {name} has {found} bytes instead of {size}")
    return expected


def digest(folder: epath.Path, pattern: str) -> str:
    """The digest of names and bytes of the files directly under `folder` that match a glob."""
    files = {path.name: path for path in sorted(folder.glob(pattern))}
    return xxhash.xxh3_128_hexdigest(_render(_measure(files)).encode())


def write_durably(path: epath.Path, content: bytes) -> None:
    """Writes a file and syncs it to disk, so that it survives a power failure afterwards."""
    with path.open("wb") as file:
        file.write(content)
        file.flush()
        with contextlib.suppress(io.UnsupportedOperation, AttributeError):  # on object stores
            os.fsync(file.fileno())


def _files(folder: epath.Path, prefix: str = "") -> dict[str, epath.Path]:
    """Name relative to the top → path, of all files except manifests."""
    found: dict[str, epath.Path] = {}
    for path in folder.iterdir():
        name = prefix + path.name
        if path.is_dir():
            found |= _files(path, name + "/")
        elif not re.fullmatch(r"manifest(\.\d+)?\.json", name):
            found[name] = path
    return found


def _writer(name: str, process_count: int) -> int:
    """The process that wrote a file: Orbax stores the arrays of each in its own folder."""
    found = re.search(r"/ocdbt\.process_(\d+)/", name)
    return int(found[1]) % process_count if found else 0


def _measure(files: dict[str, epath.Path]) -> _Files:
    sizes = {name: path.stat().length for name, path in files.items()}
    counts = {name: max(-(-size // _PART), 1) for name, size in sizes.items()}
    digests = iter(_digest([(files[name], i) for name in files for i in range(counts[name])]))
    return {name: [sizes[name], [next(digests) for _ in range(counts[name])]] for name in files}


def _digest(parts: Sequence[tuple[epath.Path, int]]) -> list[str]:
    """The digest of each part, in parallel threads, as hashing releases the interpreter lock."""
    with concurrent.futures.ThreadPoolExecutor(os.cpu_count()) as pool:
        return list(pool.map(_digest_one, parts))


def _digest_one(part: tuple[epath.Path, int]) -> str:
    path, index = part
    digest, left = xxhash.xxh3_128(), _PART
    with path.open("rb") as file:
        file.seek(index * _PART)
        while left and (block := file.read(min(left, _READ))):
            digest.update(block)
            left -= len(block)
    return digest.hexdigest()


def _render(files: _Files) -> str:
    body = json.dumps(files, sort_keys=True)
    own = xxhash.xxh3_128_hexdigest(body.encode())
    content = {"files": files, "part": _PART, "xxh3_128": own}
    return json.dumps(content, indent=1, sort_keys=True) + "\n"


def _parse(path: epath.Path) -> _Files:
    try:
        text = path.read_bytes().decode()
        files = json.loads(text)["files"]
        if _render(files) == text:
            return files
    except (ValueError, KeyError, TypeError):
        pass
    raise DamagedError(f"{path} is itself damaged")
