"""Reads documents from plain text and JSON lines."""

import json
from collections.abc import Iterator
from typing import Any

from llmjax.data import config, documents
from llmjax.data.cleaning.document import Document


def read(
    file: documents.File, source: config.Source, blocks: Iterator[bytes]
) -> Iterator[documents.Item]:
    """Streams a file's documents, like `documents.read`.

    Args:
        file: the file.
        source: names the text field, and says what a document of a plain text file is.
        blocks: the file's uncompressed bytes.

    Raises:
        DamagedError: the file breaks off.
    """
    if file.stem.endswith(documents.JSON_SUFFIXES):
        yield from _read_json(file, source, blocks)
    elif source.split == "line":
        yield from _read_lines(file, source, blocks)
    elif source.split == "paragraph":
        yield from _read_paragraphs(file, source, blocks)
    else:
        yield from _read_whole(file, source, blocks)


def _read_json(
    file: documents.File, source: config.Source, blocks: Iterator[bytes]
) -> Iterator[documents.Item]:
    for number, line in documents.numbered_lines(blocks):
        if not line.strip():
            continue  # a blank line is a separator, not a document
        text, metadata, reason = _json_text(line, source.text_field)
        if reason:
            yield documents.Rejected(file.name, "line", number, reason, line[: documents.RAW_BYTES])
        else:
            yield Document(text, f"{file.name}:{number}", source.name, metadata)


def _json_text(line: bytes, field: str) -> tuple[str, dict[str, Any], str]:
    """A JSON line's text and its other fields, or the reason why it has no text."""
    record, reason = documents.json_object(line)
    if reason:
        return "", {}, reason
    if field not in record:
        return "", {}, f"no field {field!r}"
    text = record.pop(field)
    if not isinstance(text, str):
        return "", {}, f"field {field!r} is not a string"
    if b"\\u" in line and not documents.encodable(text + json.dumps(record, ensure_ascii=False)):
        return "", {}, "unpaired surrogate"
    return (text, record, "") if text.strip() else ("", {}, "empty text")


def _plain(
    data: bytes, file: documents.File, source: config.Source, unit: documents.Unit, position: int
) -> documents.Item:
    """Decodes a piece of plain text."""
    if len(data) > documents.MAX_LINE_BYTES:
        reason = f"longer than {documents.MAX_LINE_BYTES >> 20} MiB"
        return documents.Rejected(file.name, unit, position, reason, data[: documents.RAW_BYTES])
    try:
        text = data.decode()
    except UnicodeDecodeError:
        return documents.Rejected(
            file.name, unit, position, "invalid UTF-8", data[: documents.RAW_BYTES]
        )
    if not text.strip():  # Unicode has more white space than ASCII
        return documents.Rejected(
            file.name, unit, position, "empty text", data[: documents.RAW_BYTES]
        )
    return Document(text, f"{file.name}:{position}", source.name)


def _read_lines(
    file: documents.File, source: config.Source, blocks: Iterator[bytes]
) -> Iterator[documents.Item]:
    for number, line in documents.numbered_lines(blocks):
        if line.strip():
            yield _plain(line, file, source, "line", number)


def _read_paragraphs(
    file: documents.File, source: config.Source, blocks: Iterator[bytes]
) -> Iterator[documents.Item]:
    lines: list[bytes] = []
    start, size = 1, 0
    for number, line in documents.numbered_lines(blocks):
        blank = not line.strip()
        if lines and (blank or size + len(line) > source.document_bytes):
            yield _plain(b"\n".join(lines), file, source, "line", start)
            lines, size = [], 0
        if not blank:
            start = start if lines else number
            lines.append(line)
            size += len(line) + 1
    if lines:
        yield _plain(b"\n".join(lines), file, source, "line", start)


def _read_whole(
    file: documents.File, source: config.Source, blocks: Iterator[bytes]
) -> Iterator[documents.Item]:
    """The file as one document, or as several whose concatenation is the file."""
    held, position = b"", 0
    try:
        for block in blocks:
            held += block
            while len(held) > source.document_bytes:
                cut = _cut(held, source.document_bytes)
                yield _whole(held[:cut], file, source, position)
                held, position = held[cut:], position + cut
    except documents.DamagedError as damage:
        raise documents.DamagedError(position, held, damage.reason) from damage
    if held or not position:
        yield _whole(held, file, source, position)


def _whole(
    data: bytes, file: documents.File, source: config.Source, position: int
) -> documents.Item:
    if not data.strip():
        return documents.Rejected(
            file.name, "byte", position, "empty text", data[: documents.RAW_BYTES]
        )
    return _plain(data, file, source, "byte", position)


def _cut(data: bytes, limit: int) -> int:
    """The best place to cut at or before `limit`: the end of a line, a word or a character."""
    for separator in (b"\n", b" "):
        cut = data.rfind(separator, 0, limit) + 1
        if data[:cut].strip():  # white space alone would be a piece without text
            return cut
    cut = limit
    while cut > limit - 4 and data[cut] & 0xC0 == 0x80:
        cut -= 1
    return cut
