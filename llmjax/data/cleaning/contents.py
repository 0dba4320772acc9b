"""Digests of the files that settings name, so that a change of content changes the settings."""

import functools
import hashlib
from pathlib import Path


def digest(path: str | Path) -> str:
    """Hash of a file's contents, independent of its path.

    Raises:
        ValueError: the file cannot be read.
    """
    try:
        status = Path(path).stat()
        return _digest(str(path), status.st_size, status.st_mtime_ns)
    except OSError as error:
        raise ValueError(
            f"{path}, which cleaning settings name, cannot be read: {error}"
        ) from error


@functools.lru_cache(maxsize=1024)
def _digest(path: str, size: int, modified_ns: int) -> str:
    del size, modified_ns  # cache keys: they change with the contents
    with Path(path).open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
