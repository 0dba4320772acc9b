"""Stores cleaned and rejected documents in files: JSON lines with zstd, written atomically."""

import json
import math
import os
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import zstandard

from llmjax.data import documents
from llmjax.data.cleaning.document import Document, Rejected

SUFFIX = ".jsonl.zst"
# Marks files that are being written.
PARTIAL = ".partial-"

_LEVEL = 3
# Maximum size of a character in JSON, two UTF-16 escapes; and room for the rest of the record.
_CHARACTER_BYTES = 16


def encode(document: Document) -> tuple[bytes, str]:
    """A document's line, or nothing and the reason why it cannot be stored."""
    try:
        line = json.dumps(_record(document), ensure_ascii=False, default=str).encode() + b"\n"
    except UnicodeEncodeError:
        return b"", "unpaired surrogate"
    if len(line) > documents.MAX_LINE_BYTES:
        return b"", f"longer than {documents.MAX_LINE_BYTES >> 20} MiB"
    return line, ""


def encode_rejected(item: Rejected, count: int) -> bytes:
    """The line of a rejected document, or of several that could not be read."""
    text = item.document.text[: documents.MAX_LINE_BYTES // _CHARACTER_BYTES]
    why = {"step": item.step, "reason": item.reason, "score": item.score, "count": count}
    record = {**_record(item.document), "text": text, **why}
    line = json.dumps(record, default=str).encode() + b"\n"
    if len(line) > documents.MAX_LINE_BYTES:
        return json.dumps({**record, "metadata": {}}).encode() + b"\n"
    return line


def unsound(text: str) -> str:
    """The reason why a text cannot be a document's; "" if it can."""
    if not text.strip():
        return "empty text"
    return "" if documents.encodable(text) else "unpaired surrogate"


def file(path: Path) -> documents.File:
    """A file that was written here, which may be compressed to any degree."""
    status = path.stat()
    return documents.File(
        path, path.name, status.st_size, status.st_mtime_ns, max_expansion=math.inf
    )


def read(
    path: Path, source: str, advance: documents.Advance = lambda _: None
) -> Iterator[Document]:
    """Streams the documents in a file, exactly as they were written."""
    for _, line in documents.numbered_lines(documents.read_blocks(file(path), advance)):
        record = json.loads(line)
        yield _document(record, source)


def read_rejected(
    path: Path, source: str, advance: documents.Advance = lambda _: None
) -> Iterator[tuple[Rejected, int]]:
    """Streams rejected documents from a file, each with the number of documents it represents."""
    for _, line in documents.numbered_lines(documents.read_blocks(file(path), advance)):
        record = json.loads(line)
        document = _document(record, source)
        item = Rejected(document, record["reason"], record["score"], record["step"])
        yield item, record["count"]


def _record(document: Document) -> dict[str, Any]:
    return {"text": document.text, "id": document.id, "metadata": dict(document.metadata)}


def _document(record: dict[str, Any], source: str) -> Document:
    return Document(record["text"], record["id"], source, record["metadata"])


class Writer:
    """Writes lines to a file that gets its final name when complete."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._partial = partial(path)
        self._raw = self._partial.open("wb")
        self._stream = zstandard.ZstdCompressor(_LEVEL).stream_writer(self._raw, closefd=False)

    def append(self, path: Path) -> None:
        """Copies a complete file of this kind before the lines that follow."""
        with path.open("rb") as stream:
            while block := stream.read(documents.BLOCK_BYTES):
                self._raw.write(block)

    def write(self, line: bytes) -> None:
        """Writes a line, including its newline."""
        self._stream.write(line)

    def close(self) -> int:
        """Ends and renames the file; returns its size in bytes."""
        self._stream.close()
        size = self._raw.tell()
        self._raw.close()
        self._partial.replace(self._path)
        return size

    def discard(self) -> None:
        """Removes what was written."""
        self._raw.close()
        self._partial.unlink(missing_ok=True)


def write_json(path: Path, record: Any) -> None:
    """Writes a JSON file atomically."""
    unfinished = partial(path)
    unfinished.write_text(json.dumps(record))
    unfinished.replace(path)


def partial(path: Path) -> Path:
    """The name of an incomplete file, unique to the process, on any machine."""
    return path.with_name(f"{path.name}{PARTIAL}{os.getpid()}-{uuid.uuid4().hex[:8]}")
