"""Reads documents from the rows of Parquet files."""

import itertools
import math
from collections.abc import Iterator
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pyarrow.types as types

from llmjax.data import config, documents
from llmjax.data.cleaning.document import Document

# The exceptions that a damaged file may raise.
DAMAGE = (pa.ArrowException, OSError, ValueError, OverflowError)
BOMB = "decompression bomb"

# Few rows, because a tiny file can repeat one long value in every row.
_BATCH_ROWS = 16


def read(
    file: documents.File, source: config.Source, advance: documents.Advance, *, metadata: bool
) -> Iterator[documents.Item]:
    """Streams the rows of a file, or of a range of its row groups, like `documents.read`.

    Metadata is read from the other columns of plain values.
    """
    row, left = 1, 1
    try:
        with pq.ParquetFile(file.path) as table:
            sizes = [table.metadata.row_group(i).num_rows for i in range(table.num_row_groups)]
            groups = range(len(sizes))[file.start : file.stop]
            row, rows = 1 + sum(sizes[: file.start]), sum(sizes[i] for i in groups)
            if not rows:
                return
            left = rows
            if reason := _unreadable(table, groups, source.text_field):
                raw = str(table.schema_arrow).encode(errors="replace")[: documents.RAW_BYTES]
                yield documents.Rejected(file.name, "row", row, reason, raw, rows)
                return
            others = [c.name for c in table.schema_arrow if metadata and _plain(c)]
            columns = [source.text_field, *others]
            for batch in table.iter_batches(_BATCH_ROWS, list(groups), columns):
                for item in _rows(batch, file, source, row):
                    yield item
                    row, left = row + 1, left - 1
                advance(file.size * batch.num_rows // rows)
    except DAMAGE as error:
        raw = str(error).encode(errors="replace")[: documents.RAW_BYTES]
        yield documents.Rejected(file.name, "row", row, "damaged Parquet file", raw, max(1, left))


def split(file: documents.File, size: int) -> list[documents.File]:
    """Splits a file into ranges of row groups of about `size` bytes; a damaged file stays whole."""
    try:
        metadata = pq.read_metadata(file.path)
    except DAMAGE:
        return [file]
    ranges, start, held = [], 0, 0
    for group in range(metadata.num_row_groups):
        held += metadata.row_group(group).total_byte_size
        if held >= size or group + 1 == metadata.num_row_groups:
            ranges.append((start, group + 1))
            start, held = group + 1, 0
    if len(ranges) < 2:
        return [file]
    ends = [file.size * stop // metadata.num_row_groups for _, stop in ranges]
    return [
        documents.ranged(file, *span, end - begin)
        for span, (begin, end) in zip(ranges, itertools.pairwise([0, *ends]), strict=True)
    ]


def _unreadable(table: Any, groups: range, field: str) -> str:
    """The reason why no row can be read; "" if rows can."""
    schema = table.schema_arrow
    if schema.names.count(field) != 1:
        return f"no column {field!r}" if field not in schema.names else f"two columns {field!r}"
    kind = schema.field(field).type
    if not (_is_text(kind) or _is_bytes(kind)):
        return f"column {field!r} is {kind}, not a string"
    return BOMB if is_bomb(table.metadata, groups) else ""


def is_bomb(metadata: Any, groups: range) -> bool:
    """Whether a column of some row groups expands too much for text."""
    columns = (
        group.column(i)
        for group in map(metadata.row_group, groups)
        for i in range(group.num_columns)
    )
    return any(
        column.total_uncompressed_size
        > max(
            documents.FREE_EXPANSION_BYTES, documents.MAX_EXPANSION * column.total_compressed_size
        )
        for column in columns
    )


def _is_text(kind: Any) -> bool:
    kind = kind.value_type if types.is_dictionary(kind) else kind
    return types.is_string(kind) or types.is_large_string(kind) or types.is_string_view(kind)


def _is_bytes(kind: Any) -> bool:
    return types.is_binary(kind) or types.is_large_binary(kind) or types.is_fixed_size_binary(kind)


def _plain(column: Any) -> bool:
    return not types.is_nested(column.type) and not _is_bytes(column.type)


def _rows(
    batch: Any, file: documents.File, source: config.Source, first: int
) -> Iterator[documents.Item]:
    values = {
        name: _values(column)
        for name, column in zip(batch.schema.names, batch.columns, strict=True)
        if name != source.text_field
    }
    column = batch.column(source.text_field)
    column = column.dictionary_decode() if types.is_dictionary(column.type) else column
    texts = column.cast(pa.large_binary()).to_pylist()
    for i, data in enumerate(texts):
        row = first + i
        if reason := _empty(data):
            yield documents.Rejected(
                file.name, "row", row, reason, (data or b"")[: documents.RAW_BYTES]
            )
            continue
        metadata = {name: found[i] for name, found in values.items() if found[i] is not None}
        try:
            text = data.decode()
            reason = "" if text.strip() else "empty text"
        except UnicodeDecodeError:
            reason = "invalid UTF-8"
        if reason:
            yield documents.Rejected(file.name, "row", row, reason, data[: documents.RAW_BYTES])
        else:
            yield Document(text, f"{file.name}:{row}", source.name, metadata)


def _empty(data: bytes | None) -> str:
    if data is None:
        return "no text"
    if len(data) > documents.MAX_LINE_BYTES:
        return f"longer than {documents.MAX_LINE_BYTES >> 20} MiB"
    return "" if data.strip() else "empty text"


def _values(column: Any) -> list[Any]:
    """A column's values as JSON types; all None if the column cannot be read."""
    try:
        values = column.to_pylist()
    except (ValueError, OverflowError):  # text that is not UTF-8, dates outside of any calendar
        return [None] * len(column)
    return [_as_json(value) for value in values]


def _as_json(value: Any) -> Any:
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    return value if value is None or isinstance(value, str | int) else str(value)
