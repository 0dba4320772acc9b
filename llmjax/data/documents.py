"""Streams documents from files: plain text, JSON lines, Parquet, HTML and WARC.

A file yields its documents, and a `Rejected` for everything that could not be read; no content of a
file stops the reading. At most one document and a few blocks are in memory at a time, however much
an archive expands.
"""

import codecs
import dataclasses
import functools
import glob
import itertools
import json
import os
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, BinaryIO, Literal, Protocol

import zstandard

from llmjax.data import config
from llmjax.data.cleaning.document import Document

BLOCK_BYTES = 1 << 18
# A document must fit in memory; a longer line is treated as damaged and rejected.
MAX_LINE_BYTES = 1 << 26
# How much of a rejected text is kept for inspection.
RAW_BYTES = 500

# An archive is a decompression bomb if it expands more than this many times and to more than this
# size: text shrinks to a third or a tenth, repetitive logs to a hundredth.
MAX_EXPANSION = 200
FREE_EXPANSION_BYTES = 1 << 28
# Input to a decoder per call: zstd expands that to at most 32 MiB, deflate to 1 MiB.
_SLICE_BYTES = 1 << 10
# The largest window that a zstd frame may ask for; a decoder holds it in memory.
_MAX_WINDOW_BYTES = 1 << 27

_DECODER = json.JSONDecoder(parse_constant=lambda _: None)

TEXT_SUFFIXES = (".txt", ".text", ".md")
JSON_SUFFIXES = (".jsonl", ".ndjson")
HTML_SUFFIXES = (".html", ".htm")
WARC_SUFFIXES = (".warc",)
COMPRESSIONS = (".gz", ".zst")
RECORD_SUFFIXES = (*(s + c for s in JSON_SUFFIXES for c in ("", *COMPRESSIONS)), ".parquet")
SUFFIXES = (
    *(s + c for s in (*TEXT_SUFFIXES, *HTML_SUFFIXES, *WARC_SUFFIXES) for c in ("", *COMPRESSIONS)),
    *RECORD_SUFFIXES,
)


@dataclasses.dataclass(frozen=True)
class File:
    """An input file, or a range of one.

    Attributes:
        path: path of the file.
        name: its path below the source's root, so that it survives a move. A range that does not
            start at the beginning of the file has `+` and its start appended.
        size: bytes on disk.
        modified_ns: time of the last modification.
        start: start of the range: a byte, or a row group of Parquet. A line belongs to the range in
            which it begins.
        stop: end of the range (exclusive); None for the end of the file.
        max_expansion: expansion factor above which a large archive counts as a bomb.
    """

    path: Path
    name: str
    size: int
    modified_ns: int
    start: int = 0
    stop: int | None = None
    max_expansion: float = MAX_EXPANSION

    @property
    def stem(self) -> str:
        """The file's name without the suffix of its compression, if any."""
        name = self.path.name
        for compression in COMPRESSIONS:
            name = name.removesuffix(compression)
        return name


Unit = Literal["line", "row", "byte", "record"]


@dataclasses.dataclass(frozen=True)
class Rejected:
    """A malformed piece of a file: `count` documents from `position` on, counted in `unit`s.

    Lines, rows and records count from 1, bytes from 0 (of the uncompressed file).
    """

    file: str
    unit: Unit
    position: int
    reason: str
    raw: bytes = b""
    count: int = 1


Advance = Callable[[int], None]
Item = Document | Rejected


class DamagedError(Exception):
    """A compressed file that breaks off; everything before `position` has been read."""

    def __init__(self, position: int, raw: bytes = b"", reason: str = "damaged archive") -> None:
        super().__init__(position)
        self.position = position
        self.raw = raw[:RAW_BYTES]
        self.reason = reason

    def rejected(self, file: File) -> Rejected:
        """The rest of the file, as a rejected piece."""
        return Rejected(file.name, "byte", self.position, self.reason, self.raw)


def find_files(
    source: config.Source | config.ExampleSource, suffixes: tuple[str, ...] = SUFFIXES
) -> tuple[File, ...]:
    """Lists a source's files with one of the suffixes, in a fixed order.

    Raises:
        FileNotFoundError: there is nothing to read at the source's path.
        ValueError: a file's suffix does not name a supported format.
    """
    root = Path(source.path).expanduser()
    if root.is_file():
        base, paths = root.parent, [root]
    elif root.is_dir():
        base = root
        paths = [p for p in _within(root) if p.is_file() and p.name.endswith(suffixes)]
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


def _within(root: Path) -> Iterator[Path]:
    """The files below a folder, also through links to folders, each of which is read once."""
    seen = set()
    for folder, folders, names in os.walk(root, followlinks=True):
        place = os.path.realpath(folder)
        if place in seen:
            folders.clear()
            continue
        seen.add(place)
        folders.sort()
        yield from (Path(folder, name) for name in names)


def _file(path: Path, base: Path) -> File:
    status = path.stat()
    name = path.relative_to(base).as_posix() if path.is_relative_to(base) else path.name
    return File(path, name, status.st_size, status.st_mtime_ns)


def read(
    file: File,
    source: config.Source,
    advance: Advance = lambda _: None,
    *,
    metadata: bool = False,
) -> Iterator[Item]:
    """Streams a file's documents, and a `Rejected` for each malformed one.

    A document's id is `name:position`; its metadata is what its record has besides the text.

    Args:
        file: from `find_files`, or a range of one, from `split`.
        source: names the text field, and says what a document of a plain text file is.
        advance: called with the number of (compressed) bytes read since the last call.
        metadata: whether to read the other columns of Parquet too.
    """
    if file.stem.endswith(".parquet"):
        from llmjax.data import parquet  # imports pyarrow: half of the time and memory of imports

        yield from parquet.read(file, source, advance, metadata=metadata)
        return
    from llmjax.data import texts, web  # which import this module

    format_ = web if file.stem.endswith((*HTML_SUFFIXES, *WARC_SUFFIXES)) else texts
    try:
        yield from format_.read(file, source, read_blocks(file, advance))
    except DamagedError as damage:
        yield damage.rejected(file)


def split(file: File, source: config.Source, size: int) -> list[File]:
    """Splits a file into ranges of about `size` bytes that can be read independently.

    Only uncompressed files of lines, and the row groups of Parquet, can be split; other files are
    returned whole.
    """
    if file.stem.endswith(".parquet"):
        from llmjax.data import parquet

        return parquet.split(file, size)
    lines = file.stem.endswith(JSON_SUFFIXES) or source.split == "line"
    web = file.stem.endswith((*HTML_SUFFIXES, *WARC_SUFFIXES))
    if not lines or web or file.stem != file.path.name or file.size <= size:
        return [file]
    return [
        ranged(file, start, min(start + size, file.size), min(size, file.size - start))
        for start in range(0, file.size, size)
    ]


def ranged(file: File, start: int, stop: int, size: int) -> File:
    """The range of a file from `start` to `stop`, of `size` bytes."""
    name = f"{file.name}+{start:015}" if start else file.name  # names sort in the order of ranges
    return dataclasses.replace(file, name=name, start=start, stop=stop, size=size)


def read_blocks(file: File, advance: Advance) -> Iterator[bytes]:
    """Yields the file's uncompressed bytes, without a byte order mark.

    Raises:
        DamagedError: the archive breaks off or is a bomb; all bytes before that were yielded.
    """
    blocks = _raw_blocks(file, advance)
    if file.path.name.endswith(".gz"):
        inflate = functools.partial(zlib.decompressobj, wbits=31)
        blocks = _decompress(blocks, inflate, zlib.error, file.max_expansion)
    elif file.path.name.endswith(".zst"):
        make = zstandard.ZstdDecompressor(max_window_size=_MAX_WINDOW_BYTES).decompressobj
        blocks = _decompress(blocks, make, zstandard.ZstdError, file.max_expansion)
    first = b""
    while len(first) < len(codecs.BOM_UTF8) and (block := next(blocks, b"")):
        first += block
    yield first if file.start else first.removeprefix(codecs.BOM_UTF8)
    yield from blocks


def _raw_blocks(file: File, advance: Advance) -> Iterator[bytes]:
    with file.path.open("rb") as stream:
        stop = file.stop
        for block in _whole(stream) if stop is None else _lines_from(stream, file.start, stop):
            yield block
            advance(len(block))


def _whole(stream: BinaryIO) -> Iterator[bytes]:
    while block := stream.read(BLOCK_BYTES):
        yield block


def _lines_from(stream: BinaryIO, start: int, stop: int) -> Iterator[bytes]:
    """Yields the lines that begin in [start, stop), in blocks."""
    if start:
        stream.seek(start - 1)
        for _ in _rest_of_line(stream):
            if stream.tell() >= stop:
                return
    block = b"\n"
    while (left := stop - stream.tell()) > 0 and (read := stream.read(min(BLOCK_BYTES, left))):
        block = read
        yield block
    if not block.endswith(b"\n"):
        yield from _rest_of_line(stream)


def _rest_of_line(stream: BinaryIO) -> Iterator[bytes]:
    while piece := stream.readline(BLOCK_BYTES):
        yield piece
        if piece.endswith(b"\n"):
            return


class _Decoder(Protocol):
    @property
    def eof(self) -> bool: ...

    @property
    def unused_data(self) -> bytes: ...

    def decompress(self, data: bytes, /) -> bytes: ...


def _decompress(
    blocks: Iterator[bytes],
    make: Callable[[], _Decoder],
    error: type[Exception],
    max_expansion: float,
) -> Iterator[bytes]:
    """Decompresses a file of one or more members, yielding everything that precedes any damage.

    Null bytes after a member are padding, as for the programs that wrote it.
    """
    decoder: _Decoder | None = None
    position, read = 0, 0
    for piece in itertools.chain.from_iterable(_cut(block, _SLICE_BYTES) for block in blocks):
        read += len(piece)
        while piece := piece if decoder or not position else piece.lstrip(b"\0"):  # padding
            decoder = decoder or make()
            try:
                data = decoder.decompress(piece)
            except error as cause:
                raise DamagedError(position) from cause
            position += len(data)
            if position > max(FREE_EXPANSION_BYTES, max_expansion * read):
                raise DamagedError(position - len(data), reason="decompression bomb")
            yield from _cut(data, BLOCK_BYTES)
            piece = decoder.unused_data if decoder.eof else b""
            decoder = None if decoder.eof else decoder
    if decoder is not None:
        raise DamagedError(position)


def _cut(data: bytes, size: int) -> Iterator[bytes]:
    return (data[start : start + size] for start in range(0, len(data), size))


def numbered_lines(blocks: Iterator[bytes]) -> Iterator[tuple[int, bytes]]:
    """(line number from 1, line without its end); an overlong line is truncated."""
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
            yield number, b"".join(parts).removesuffix(b"\r")
            for line in rest[:-1]:
                number += 1
                yield number, line.removesuffix(b"\r")
            number, parts, held = number + 1, [rest[-1]], len(rest[-1])
    except DamagedError as damage:
        position = damage.position - held
        raise DamagedError(position, b"".join(parts), damage.reason) from damage
    if held:
        yield number, b"".join(parts).removesuffix(b"\r")


def json_object(line: bytes) -> tuple[dict[str, Any], str]:
    """Parses a JSON line; returns an empty object and the reason if it is not a JSON object.

    NaN and Infinity, which JSON does not have, become null, so that other programs can read what is
    written.
    """
    if len(line) > MAX_LINE_BYTES:
        return {}, f"longer than {MAX_LINE_BYTES >> 20} MiB"
    try:
        record = _DECODER.decode(line.decode().removeprefix("\ufeff"))  # of files joined to one
    except UnicodeDecodeError:
        return {}, "invalid UTF-8"
    except (ValueError, RecursionError):
        return {}, "not JSON"
    return (record, "") if isinstance(record, dict) else ({}, "not a JSON object")


def encodable(text: str) -> bool:
    """Whether a text is valid Unicode."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True
