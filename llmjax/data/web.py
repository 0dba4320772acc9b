"""Reads documents from saved web pages: HTML files, and the responses in WARC archives.

A document's text is the raw page, tags included; the cleaning step `html` extracts the readable
text. Its metadata has `format="html"`, and `url` and `date` if it comes from an archive.
"""

import codecs
import itertools
import re
from collections.abc import Iterator
from typing import Any

from llmjax.data import config, documents
from llmjax.data.cleaning.document import Document
from llmjax.data.cleaning.extra import needs

# Maximum size of a record's headers.
_MAX_HEADER_BYTES = 1 << 20

# Only these, because Python has codecs that are no charsets, some of which take quadratic time.
_CHARSETS = re.compile(
    r"utf-?8|utf-?16(?:le|be)?|us-ascii|ascii|latin-?1|iso-?8859-\d+|(?:windows-|cp)\d+|koi8-[rut]"
    r"|shift[_-]jis|euc-(?:jp|kr)|iso-2022-jp|gb2312|gbk|gb18030|big5|tis-620|mac-?roman",
    re.IGNORECASE,
)
_DECLARED = re.compile(rb"<meta[^>]{0,200}charset\s*=\s*[\"']?\s*([\w.:-]{1,40})", re.IGNORECASE)
# The charsets that browsers use for these names.
_SUPERSETS = {"ascii": "cp1252", "iso8859-1": "cp1252", "gb2312": "gb18030", "gbk": "gb18030"}


def read(
    file: documents.File, source: config.Source, blocks: Iterator[bytes]
) -> Iterator[documents.Item]:
    """Streams the page of an HTML file, or those of a WARC archive, like `documents.read`.

    Args:
        file: the file.
        source: the source that it belongs to.
        blocks: the file's uncompressed bytes.
    """
    if not file.stem.endswith(documents.HTML_SUFFIXES):
        yield from _once(_read_archive(file, source, blocks))
        return
    yield _page(_at_most(blocks), "", file, source, "byte", 0)


def _at_most(blocks: Iterator[bytes]) -> bytes:
    """The bytes of a page, truncated if it is too long."""
    held = bytearray()
    for block in blocks:
        held += block
        if len(held) > documents.MAX_LINE_BYTES:
            break
    return bytes(held)


def _page(
    data: bytes,
    charset: str,
    file: documents.File,
    source: config.Source,
    unit: documents.Unit,
    position: int,
    **known: Any,
) -> documents.Item:
    """A page as a document; `charset` is that of its HTTP headers, if any."""
    text, reason = "", ""
    if len(data) > documents.MAX_LINE_BYTES:
        reason = f"longer than {documents.MAX_LINE_BYTES >> 20} MiB"
    elif not data.strip():
        reason = "empty text"
    else:
        name = _charset(data, charset)
        try:
            text = data.decode(name).removeprefix("\ufeff")
        except UnicodeDecodeError:
            reason = "invalid UTF-8" if name == "utf-8" else "invalid in its declared charset"
        if not reason and not text.strip():
            reason = "empty text"
        elif not documents.encodable(text):
            reason = "unpaired surrogate"
    if reason:
        return documents.Rejected(file.name, unit, position, reason, data[: documents.RAW_BYTES])
    return Document(text, f"{file.name}:{position}", source.name, {"format": "html", **known})


def _charset(data: bytes, named: str) -> str:
    """The codec of a page: from its byte order mark, its headers, its <meta> tag, or UTF-8."""
    if data.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        return "utf-16"
    declared = _DECLARED.search(data[:2048])
    for name in (named, declared.group(1).decode("ascii", "replace") if declared else ""):
        if _CHARSETS.fullmatch(name):
            try:
                codec = codecs.lookup(name).name
            except LookupError:
                continue
            # A declaration that is readable as ASCII is not in UTF-16.
            return _SUPERSETS.get(codec, "utf-8" if codec.startswith("utf-16") else codec)
    return "utf-8"


class _Stream:
    """Presents blocks to warcio as a file, in bounded portions."""

    def __init__(self, blocks: Iterator[bytes]) -> None:
        self._blocks = blocks
        self._held = b""
        self.position = 0
        self.limit = 0

    def read(self, size: int = documents.BLOCK_BYTES) -> bytes:
        """The next bytes, at most `size`; b"" at the end.

        Raises:
            documents.DamagedError: the archive is damaged, or `limit` bytes have been read.
        """
        while not self._held:
            block = next(self._blocks, None)
            if block is None:
                return b""
            self._held = block
        if self.position >= self.limit:
            raise documents.DamagedError(self.position, self._held)
        data, self._held = self._held[:size], self._held[size:]
        self.position += len(data)
        return data

    def tell(self) -> int:
        """The number of bytes read."""
        return self.position


def _read_archive(
    file: documents.File, source: config.Source, blocks: Iterator[bytes]
) -> Iterator[documents.Item]:
    with needs("warcio"):
        from warcio.archiveiterator import ArchiveIterator
    first = next(blocks, b"")
    if first.startswith(b"\x1f\x8b"):  # warcio would decompress it without a limit
        raise documents.DamagedError(0, first, "compressed twice, or misnamed")
    stream = _Stream(itertools.chain((first,), blocks))
    archive = ArchiveIterator(stream)
    archive.INC_RECORD = ""  # the message it would print for a record of the wrong length
    errors = 0
    for number in itertools.count(1):
        try:
            stream.limit = stream.position + _MAX_HEADER_BYTES
            record = next(archive, None)
            if archive.err_count > errors:
                errors = archive.err_count
                reason = "wrong Content-Length"
                yield documents.Rejected(file.name, "record", number - 1, reason)
            if record is None:
                return
            if record.length is None:
                raise ValueError("a record does not say its length")
            item = _response(record, stream, file, source, number)
        except documents.DamagedError:
            raise
        except Exception as error:  # warcio raises whatever the damage happens to cause
            raw = repr(error).encode(errors="replace")[: documents.RAW_BYTES]
            yield documents.Rejected(file.name, "record", number, "damaged archive", raw)
            return
        if item is not None:
            yield item


def _once(items: Iterator[documents.Item]) -> Iterator[documents.Item]:
    """The last item of each record: that one is damaged may show after its page has been read."""
    held: list[documents.Item] = []
    try:
        for item in items:
            if held and _place(held[0]) != _place(item):
                yield held.pop()
            held = [item]
    except documents.DamagedError:
        yield from held
        raise
    yield from held


def _place(item: documents.Item) -> str:
    return item.id if isinstance(item, Document) else f"{item.file}:{item.position}"


def _response(
    record: Any, stream: _Stream, file: documents.File, source: config.Source, number: int
) -> documents.Item | None:
    """The page of a record with a successful HTML response; reads the record to its end."""
    headers = record.http_headers
    kind = (headers.get_header("Content-Type") or "").lower() if headers else ""
    wanted = (
        record.rec_type == "response"
        and headers is not None  # those of DNS have none
        and headers.get_statuscode().startswith("2")
        and kind.partition(";")[0].strip() in ("text/html", "application/xhtml+xml")
    )
    item = None
    if wanted:
        stream.limit = stream.position + 2 * documents.MAX_LINE_BYTES
        content = record.content_stream()
        data = _at_most(iter(lambda: content.read(documents.BLOCK_BYTES), b""))
        known = {
            key: value
            for key, header in (("url", "WARC-Target-URI"), ("date", "WARC-Date"))
            if (value := record.rec_headers.get_header(header)) and documents.encodable(value)
        }
        charset = re.search(r"charset=[\"']?([^\s;\"']+)", kind)
        named = charset.group(1) if charset else ""
        item = _page(data, named, file, source, "record", number, **known)
    stream.limit = stream.position + 2 * documents.BLOCK_BYTES
    while record.raw_stream.read(documents.BLOCK_BYTES):
        stream.limit = stream.position + 2 * documents.BLOCK_BYTES
    return item
