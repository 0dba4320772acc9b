"""Documents out of files: plain text, JSON lines, Parquet, HTML and WARC, read as streams.

A file yields its documents, and a `Rejected` in place of whatever could not be read; nothing that
a file contains ends the reading. No more than one document and a few blocks are held at a time,
whatever an archive expands to.
"""

import dataclasses
import functools
import glob
import itertools
import json
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, BinaryIO, Literal, Protocol

import zstandard

from llmjax.data import config
from llmjax.data.cleaning.document import Document

BLOCK_BYTES = 1 << 18
# A document must fit in memory; a longer line is taken for damage and rejected.
MAX_LINE_BYTES = 1 << 26
# How much of a rejected text is kept for the reader's eye.
RAW_BYTES = 500

# An archive is a bomb when it has expanded more than so many times, and to more than this: text
# shrinks to a third or a tenth, repetitive logs to a hundredth.
MAX_EXPANSION = 200
FREE_EXPANSION_BYTES = 1 << 28
# What a decoder is given at a time: zstd makes at most 32 MiB of that, deflate 1 MiB.
_SLICE_BYTES = 1 << 10
# The largest window, which a decoder holds in memory, that frames of zstd may ask for.
_MAX_WINDOW_BYTES = 1 << 27

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
        path: where it lies.
        name: its path below the source's root, so it survives a move; of a range that does not
            begin where the file does, with `+` and where it begins.
        size: bytes on disk.
        modified_ns: when it was last written to.
        start: where the range begins: a byte, or a row group of Parquet. Lines that begin in a
            range are in it.
        stop: where the range ends, that place left out; None at the file's end.
        max_expansion: how many times an archive may expand, if not to little, and not be a bomb.
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
        """The file's name without the suffix of its compression, if it has one."""
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
    """A compressed file broke off: everything before `position` has been read."""

    def __init__(self, position: int, raw: bytes = b"", reason: str = "damaged archive") -> None:
        super().__init__(position)
        self.position = position
        self.raw = raw[:RAW_BYTES]
        self.reason = reason

    def rejected(self, file: File) -> Rejected:
        """The rest of the file, put aside."""
        return Rejected(file.name, "byte", self.position, self.reason, self.raw)


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

    A document's id is `name:position`; its metadata are what its record has beside the text.

    Args:
        file: what to read, from `find_files`, or a range of it, from `split`.
        source: says which field holds the text and what a document is in plain text.
        advance: called with the number of (compressed) bytes read since the last call.
        metadata: whether to read columns of Parquet beside the text, too.
    """
    if file.stem.endswith(".parquet"):
        from llmjax.data import parquet  # pyarrow: half of an import's time and memory

        yield from parquet.read(file, source, advance, metadata=metadata)
        return
    from llmjax.data import texts, web  # which build on this module

    format_ = web if file.stem.endswith((*HTML_SUFFIXES, *WARC_SUFFIXES)) else texts
    try:
        yield from format_.read(file, source, read_blocks(file, advance))
    except DamagedError as damage:
        yield damage.rejected(file)


def split(file: File, source: config.Source, size: int) -> list[File]:
    """A file as ranges of about `size` bytes, which can be read apart; itself where it has none.

    Lines of files that are not compressed, and Parquet's groups of rows, are such ranges.
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
    """The range of a file from `start` to `stop`, which are `size` bytes of it."""
    name = f"{file.name}+{start:015}" if start else file.name  # names sort as ranges do
    return dataclasses.replace(file, name=name, start=start, stop=stop, size=size)


def read_blocks(file: File, advance: Advance) -> Iterator[bytes]:
    """The file's uncompressed bytes, without a byte order mark.

    Raises:
        DamagedError: the archive breaks off, or is a bomb; what precedes that was handed out.
    """
    blocks = _raw_blocks(file, advance)
    if file.path.name.endswith(".gz"):
        inflate = functools.partial(zlib.decompressobj, wbits=31)
        blocks = _decompress(blocks, inflate, zlib.error, file.max_expansion)
    elif file.path.name.endswith(".zst"):
        make = zstandard.ZstdDecompressor(max_window_size=_MAX_WINDOW_BYTES).decompressobj
        blocks = _decompress(blocks, make, zstandard.ZstdError, file.max_expansion)
    first = next(blocks, b"")
    yield first.removeprefix(b"\xef\xbb\xbf")
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
    """The lines that begin from `start` on and before `stop`, in blocks."""
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
    """Uncompresses a file of one or more members, handing out all that is whole before damage."""
    decoder: _Decoder | None = None
    position, read = 0, 0
    for piece in itertools.chain.from_iterable(_cut(block, _SLICE_BYTES) for block in blocks):
        read += len(piece)
        while piece:
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
        position = damage.position - held
        raise DamagedError(position, b"".join(parts), damage.reason) from damage
    if held:
        yield number, b"".join(parts)


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


def encodable(text: str) -> bool:
    """Whether a text is valid Unicode."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True
