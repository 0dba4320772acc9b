"""Documents out of files: plain text, JSON lines and Parquet, read as streams.

A file yields its texts, and a `Rejected` in place of whatever could not be read; nothing that a
file contains ends the reading. No more than one document and one block is held at a time.
"""

import dataclasses
import glob
import itertools
import json
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Literal, Protocol

import zstandard

from llmjax.data import config

BLOCK_BYTES = 1 << 18
# A document must fit in memory; a longer line is taken for damage and rejected.
MAX_LINE_BYTES = 1 << 26
# How much of a rejected text is kept for the reader's eye.
RAW_BYTES = 500

TEXT_SUFFIXES = (".txt", ".text", ".md")
JSON_SUFFIXES = (".jsonl", ".ndjson")
COMPRESSIONS = (".gz", ".zst")
RECORD_SUFFIXES = (*(s + c for s in JSON_SUFFIXES for c in ("", *COMPRESSIONS)), ".parquet")
SUFFIXES = (
    *(s + c for s in TEXT_SUFFIXES for c in ("", *COMPRESSIONS)),
    *RECORD_SUFFIXES,
)


@dataclasses.dataclass(frozen=True)
class File:
    """An input file. `name` is its path below the source's root, so it survives a move."""

    path: Path
    name: str
    size: int
    modified_ns: int


@dataclasses.dataclass(frozen=True)
class Rejected:
    """A malformed piece of a file: `count` documents from `position` on, counted in `unit`s.

    Lines and rows count from 1, bytes from 0 (of the uncompressed file).
    """

    file: str
    unit: Literal["line", "row", "byte"]
    position: int
    reason: str
    raw: bytes = b""
    count: int = 1


Advance = Callable[[int], None]
Item = str | Rejected


def find_files(
    source: config.Source | config.ExampleSource, suffixes: tuple[str, ...] = SUFFIXES
) -> tuple[File, ...]:
    """Lists a source's files in a fixed order: those with one of some suffixes.

    Raises:
        FileNotFoundError: nothing readable lies at the source's path.
        ValueError: a file's suffix names no format that can be read.
    """
    root = Path(source.path).expanduser()
    if root.is_file():
        base, paths = root.parent, [root]
    elif root.is_dir():
        base = root
        paths = [p for p in root.rglob("*") if p.is_file() and p.name.endswith(suffixes)]
    else:
        base = Path(*itertools.takewhile(lambda part: not glob.has_magic(part), root.parts))
        pattern = root.relative_to(base).as_posix()
        paths = [p for p in base.glob(pattern) if p.is_file()] if base != root else []
    if not paths:
        raise FileNotFoundError(
            f"Source {source.name!r}: nothing to read at {source.path!r}. Give an existing file, "
            f"a folder with files that end in {', '.join(suffixes)}, or a glob that matches some."
        )
    for path in paths:
        if not path.name.endswith(suffixes):
            raise ValueError(
                f"Source {source.name!r}: cannot tell the format of {str(path)!r}. Its name must "
                f"end in one of {', '.join(suffixes)}."
            )
    return tuple(_file(path, base) for path in sorted(paths))


def read(file: File, source: config.Source, advance: Advance = lambda _: None) -> Iterator[Item]:
    """Streams a file's documents: their text, or a `Rejected` for each malformed one.

    Args:
        file: what to read, from `find_files`.
        source: says which field holds the text and what a document is in plain text.
        advance: called with the number of (compressed) bytes read since the last call.
    """
    stem = file.name
    for compression in COMPRESSIONS:
        stem = stem.removesuffix(compression)
    if stem.endswith(".parquet"):
        yield from _read_parquet(file, source, advance)
        return
    blocks = read_blocks(file, advance)
    try:
        if stem.endswith(JSON_SUFFIXES):
            yield from _read_json(file, source, blocks)
        elif source.split == "line":
            yield from _read_lines(file, blocks)
        elif source.split == "paragraph":
            yield from _read_paragraphs(file, source, blocks)
        else:
            yield from _read_whole(file, source, blocks)
    except DamagedError as damage:
        yield Rejected(file.name, "byte", damage.position, "damaged archive", damage.raw)


class DamagedError(Exception):
    """A compressed file broke off: everything before `position` has been read."""

    def __init__(self, position: int, raw: bytes = b"") -> None:
        super().__init__(position)
        self.position = position
        self.raw = raw[:RAW_BYTES]


class _Decoder(Protocol):
    @property
    def eof(self) -> bool: ...

    @property
    def unused_data(self) -> bytes: ...

    def decompress(self, data: bytes, /) -> bytes: ...


def _file(path: Path, base: Path) -> File:
    status = path.stat()
    name = path.relative_to(base).as_posix() if path.is_relative_to(base) else path.name
    return File(path, name, status.st_size, status.st_mtime_ns)


def read_blocks(file: File, advance: Advance) -> Iterator[bytes]:
    """The file's uncompressed bytes, without a byte order mark."""
    blocks = _raw_blocks(file, advance)
    if file.name.endswith(".gz"):
        blocks = _decompress(blocks, lambda: zlib.decompressobj(wbits=31), zlib.error)
    elif file.name.endswith(".zst"):
        make = zstandard.ZstdDecompressor().decompressobj
        blocks = _decompress(blocks, lambda: make(), zstandard.ZstdError)
    first = next(blocks, b"")
    yield first.removeprefix(b"\xef\xbb\xbf")
    yield from blocks


def _raw_blocks(file: File, advance: Advance) -> Iterator[bytes]:
    with file.path.open("rb") as stream:
        while block := stream.read(BLOCK_BYTES):
            yield block
            advance(len(block))


def _decompress(
    blocks: Iterator[bytes], make: Callable[[], _Decoder], error: type[Exception]
) -> Iterator[bytes]:
    """Uncompresses a file of one or more members, handing out all that is whole before damage."""
    decoder: _Decoder | None = None
    position = 0
    for block in blocks:
        while block:
            decoder = decoder or make()
            try:
                data = decoder.decompress(block)
            except error as cause:
                raise DamagedError(position) from cause
            position += len(data)
            yield data
            block = decoder.unused_data if decoder.eof else b""
            decoder = None if decoder.eof else decoder
    if decoder is not None:
        raise DamagedError(position)


def numbered_lines(blocks: Iterator[bytes]) -> Iterator[tuple[int, bytes]]:
    """(line number from 1, line without its newline); of an overlong line only the head."""
    parts: list[bytes] = []
    held, number = 0, 1
    try:
        for block in blocks:
            head, *rest = block.split(b"\n")
            if held <= MAX_LINE_BYTES:
                parts.append(head)
                held += len(head)
            if not rest:
                continue
            yield number, b"".join(parts)
            for line in rest[:-1]:
                number += 1
                yield number, line
            number, parts, held = number + 1, [rest[-1]], len(rest[-1])
    except DamagedError as damage:
        raise DamagedError(damage.position - held, b"".join(parts)) from damage
    if held:
        yield number, b"".join(parts)


def _read_json(file: File, source: config.Source, blocks: Iterator[bytes]) -> Iterator[Item]:
    for number, line in numbered_lines(blocks):
        if not line.strip():
            continue  # a blank line separates, it holds no document
        text, reason = _json_text(line, source.text_field)
        yield text if not reason else Rejected(file.name, "line", number, reason, line[:RAW_BYTES])


def json_object(line: bytes) -> tuple[dict[str, Any], str]:
    """A JSON line's object, or an empty one and the reason why there is none."""
    if len(line) > MAX_LINE_BYTES:
        return {}, f"longer than {MAX_LINE_BYTES >> 20} MiB"
    try:
        record = json.loads(line.decode())
    except UnicodeDecodeError:
        return {}, "invalid UTF-8"
    except (ValueError, RecursionError):
        return {}, "not JSON"
    return (record, "") if isinstance(record, dict) else ({}, "not a JSON object")


def _json_text(line: bytes, field: str) -> tuple[str, str]:
    """A JSON line's text, or "" and the reason why there is none."""
    record, reason = json_object(line)
    if reason:
        return "", reason
    if field not in record:
        return "", f"no field {field!r}"
    text = record[field]
    if not isinstance(text, str):
        return "", f"field {field!r} is not a string"
    if b"\\u" in line and not encodable(text):
        return "", "half a surrogate pair"
    return (text, "") if text.strip() else ("", "empty text")


def encodable(text: str) -> bool:
    """Whether a text is valid Unicode."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _plain(data: bytes, file: File, unit: Literal["line", "byte"], position: int) -> Item:
    """A piece of plain text, decoded."""
    if len(data) > MAX_LINE_BYTES:
        reason = f"longer than {MAX_LINE_BYTES >> 20} MiB"
        return Rejected(file.name, unit, position, reason, data[:RAW_BYTES])
    try:
        return data.decode()
    except UnicodeDecodeError:
        return Rejected(file.name, unit, position, "invalid UTF-8", data[:RAW_BYTES])


def _read_lines(file: File, blocks: Iterator[bytes]) -> Iterator[Item]:
    for number, line in numbered_lines(blocks):
        if line.strip():
            yield _plain(line, file, "line", number)


def _read_paragraphs(file: File, source: config.Source, blocks: Iterator[bytes]) -> Iterator[Item]:
    lines: list[bytes] = []
    start, size = 1, 0
    for number, line in numbered_lines(blocks):
        blank = not line.strip()
        if lines and (blank or size + len(line) > source.document_bytes):
            yield _plain(b"\n".join(lines), file, "line", start)
            lines, size = [], 0
        if not blank:
            start = start if lines else number
            lines.append(line)
            size += len(line) + 1
    if lines:
        yield _plain(b"\n".join(lines), file, "line", start)


def _read_whole(file: File, source: config.Source, blocks: Iterator[bytes]) -> Iterator[Item]:
    """The file as one document, or as several that joined give the file."""
    held, position = b"", 0
    try:
        for block in blocks:
            held += block
            while len(held) > source.document_bytes:
                cut = _cut(held, source.document_bytes)
                yield _whole(held[:cut], file, position)
                held, position = held[cut:], position + cut
    except DamagedError as damage:
        raise DamagedError(position, held) from damage
    if held or not position:
        yield _whole(held, file, position)


def _whole(data: bytes, file: File, position: int) -> Item:
    if not data.strip():
        return Rejected(file.name, "byte", position, "empty text", data[:RAW_BYTES])
    return _plain(data, file, "byte", position)


def _cut(data: bytes, limit: int) -> int:
    """The best place at or before `limit` to cut: a line's end, a word's, a character's."""
    for separator in (b"\n", b" "):
        cut = data.rfind(separator, 0, limit) + 1
        if cut:
            return cut
    cut = limit
    while cut > limit - 4 and data[cut] & 0xC0 == 0x80:
        cut -= 1
    return cut


def _read_parquet(file: File, source: config.Source, advance: Advance) -> Iterator[Item]:
    # Half of an import's time and memory, which text sources need not pay.
    import pyarrow as pa
    import pyarrow.parquet as pq

    row, total = 1, 1
    try:
        with pq.ParquetFile(file.path) as table:
            total = max(1, table.metadata.num_rows)
            reason = _column_reason(table.schema_arrow, source.text_field)
            if reason:
                raw = str(table.schema_arrow).encode()[:RAW_BYTES]
                yield Rejected(file.name, "row", 1, reason, raw, table.metadata.num_rows)
                return
            for batch in table.iter_batches(batch_size=256, columns=[source.text_field]):
                for data in batch.column(0).cast(pa.large_binary()).to_pylist():
                    yield _cell(data, file, row)
                    row += 1
                advance(file.size * batch.num_rows // total)
    except (pa.ArrowException, OSError) as error:
        raw = str(error).encode()[:RAW_BYTES]
        yield Rejected(file.name, "row", row, "damaged Parquet file", raw, total - row + 1)


def _column_reason(schema: Any, field: str) -> str:
    import pyarrow.types as types

    if field not in schema.names:
        return f"no column {field!r}"
    kind = schema.field(field).type
    if types.is_string(kind) or types.is_large_string(kind) or types.is_binary(kind):
        return ""
    return f"column {field!r} is {kind}, not a string"


def _cell(data: bytes | None, file: File, row: int) -> Item:
    if data is None:
        return Rejected(file.name, "row", row, "no text")
    if not data.strip():
        return Rejected(file.name, "row", row, "empty text", data[:RAW_BYTES])
    try:
        return data.decode()
    except UnicodeDecodeError:
        return Rejected(file.name, "row", row, "invalid UTF-8", data[:RAW_BYTES])
