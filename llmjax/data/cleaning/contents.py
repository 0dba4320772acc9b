"""Digests of files that settings name: with other contents they are other settings."""

import functools
import hashlib
from pathlib import Path


def digest(path: str | Path) -> str:
    """A hash of what a file holds, in whatever place it lies.

    Raises:
        ValueError: it cannot be read.
    """
    try:
        status = Path(path).stat()
        return _digest(str(path), status.st_size, status.st_mtime_ns)
    except OSError as error:
        raise ValueError(
            f"{path}, which settings of cleaning name, cannot be read: {error}"
        ) from error


@functools.lru_cache(maxsize=1024)
def _digest(path: str, size: int, modified_ns: int) -> str:
    del size, modified_ns  # others mean other contents under the same name
    with Path(path).open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
