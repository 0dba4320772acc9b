"""A manifest of sizes and SHA-256 digests that shows every change of a folder's files.

The manifest guards itself: its text must be exactly what its content renders to, digest included.
"""

import concurrent.futures
import hashlib
import json
from collections.abc import Collection
from typing import Any

from etils import epath

_MANIFEST = "manifest.json"


class DamagedError(ValueError):
    """A folder does not agree with its manifest."""


def write(folder: epath.Path, *, ignore: Collection[str] = ()) -> None:
    """Writes the manifest of all files under `folder` but those named at its top in `ignore`."""
    files = {name: path for name, path in _files(folder).items() if name not in ignore}
    (folder / _MANIFEST).write_text(_render(_measure(files)))


def verify(folder: epath.Path) -> None:
    """Reads every file against the manifest.

    Raises:
        DamagedError: naming the first difference: a file that is missing or was added, has another
            size or other bytes, or the manifest itself.
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
    for name, measured in _measure(files).items():
        if measured != expected[name]:
            raise DamagedError(f"{folder}: {name} has other bytes than were saved")


def _files(folder: epath.Path, prefix: str = "") -> dict[str, epath.Path]:
    """Name relative to the top → path, of all files but the manifest."""
    found: dict[str, epath.Path] = {}
    for path in folder.iterdir():
        name = prefix + path.name
        if path.is_dir():
            found |= _files(path, name + "/")
        elif name != _MANIFEST:
            found[name] = path
    return found


def _measure(files: dict[str, epath.Path]) -> dict[str, list[Any]]:
    """Name → [size, digest]; hashing releases the interpreter, so threads share the files."""
    with concurrent.futures.ThreadPoolExecutor() as pool:
        return dict(zip(files, pool.map(_measure_one, files.values()), strict=True))


def _measure_one(path: epath.Path) -> list[Any]:
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
        return [file.tell(), digest]


def _render(files: dict[str, list[Any]]) -> str:
    body = json.dumps(files, sort_keys=True)
    own = hashlib.sha256(body.encode()).hexdigest()
    return json.dumps({"files": files, "sha256": own}, indent=1, sort_keys=True) + "\n"


def _parse(path: epath.Path) -> dict[str, list[Any]]:
    try:
        text = path.read_bytes().decode()
        files = json.loads(text)["files"]
        if _render(files) == text:
            return files
    except (ValueError, KeyError, TypeError):
        pass
    raise DamagedError(f"{path} is itself damaged")
