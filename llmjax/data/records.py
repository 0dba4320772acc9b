"""Streams records from files: the objects of JSON lines and the rows of Parquet.

It is the counterpart of `documents` for records: whatever cannot be read becomes a `Rejected`.
"""

import dataclasses
import json
import math
from collections.abc import Iterator, Mapping
from typing import Any, Literal

from llmjax.data import documents


@dataclasses.dataclass(frozen=True)
class Record:
    """A record and its position in its file."""

    fields: Mapping[str, Any]
    file: str
    unit: Literal["line", "row"]
    position: int

    def rejected(self, reason: str) -> documents.Rejected:
        """The record as rejected, with a reason."""
        text = json.dumps(dict(self.fields), ensure_ascii=False, default=str)
        raw = text.encode(errors="backslashreplace")[: documents.RAW_BYTES]
        return documents.Rejected(self.file, self.unit, self.position, reason, raw)


Item = Record | documents.Rejected


def read(
    file: documents.File, advance: documents.Advance = lambda _: None
) -> Iterator[Record | documents.Rejected]:
    """Streams a file's records, and a `Rejected` for each malformed one.

    Args:
        file: from `documents.find_files` with its `RECORD_SUFFIXES`.
        advance: called with the number of (compressed) bytes read since the last call.
    """
    if file.name.endswith(".parquet"):
        yield from _read_parquet(file, advance)
        return
    try:
        for number, line in documents.numbered_lines(documents.read_blocks(file, advance)):
            if line.strip():
                yield _read_line(file, number, line)
    except documents.DamagedError as damage:
        yield damage.rejected(file)


def _read_line(file: documents.File, number: int, line: bytes) -> Item:
    fields, reason = documents.json_object(line)
    if not reason and b"\\u" in line and not _encodable(fields):
        reason = "unpaired surrogate"
    if reason:
        return documents.Rejected(file.name, "line", number, reason, line[: documents.RAW_BYTES])
    return Record(_present(fields), file.name, "line", number)


def _encodable(value: Any) -> bool:
    return documents.encodable(json.dumps(value, ensure_ascii=False))


def _read_parquet(file: documents.File, advance: documents.Advance) -> Iterator[Item]:
    # Half of the time and memory of imports, which JSON lines do not need.
    import pyarrow.parquet as pq

    from llmjax.data import parquet

    row, total = 1, 1
    try:
        with pq.ParquetFile(file.path) as table:
            total = max(1, table.metadata.num_rows)
            if parquet.is_bomb(table.metadata, range(table.num_row_groups)):
                raw = str(table.schema_arrow).encode(errors="replace")[: documents.RAW_BYTES]
                yield documents.Rejected(file.name, "row", row, parquet.BOMB, raw, total)
                return
            for batch in table.iter_batches(batch_size=256):
                for item in _read_rows(file, row, batch):
                    yield item
                    row += 1
                advance(file.size * batch.num_rows // total)
    except parquet.DAMAGE as error:
        raw = str(error).encode(errors="replace")[: documents.RAW_BYTES]
        count = max(1, total - row + 1)
        yield documents.Rejected(file.name, "row", row, "damaged Parquet file", raw, count)


def _read_rows(file: documents.File, first: int, batch: Any) -> Iterator[Item]:
    try:
        rows = batch.to_pylist()
    except (ValueError, OverflowError) as error:  # not UTF-8, or a date outside of any calendar
        if batch.num_rows == 1:
            raw = str(error).encode(errors="replace")[: documents.RAW_BYTES]
            yield documents.Rejected(file.name, "row", first, "unreadable value", raw)
            return
        for i in range(batch.num_rows):
            yield from _read_rows(file, first + i, batch.slice(i, 1))
        return
    for row, fields in enumerate(rows, first):
        yield Record(_present(_finite(fields)), file.name, "row", row)


def _finite(value: Any) -> Any:
    """A value with null for NaN and infinities, which JSON does not have."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {name: _finite(item) for name, item in value.items()}
    return [_finite(item) for item in value] if isinstance(value, list) else value


def _present(fields: Mapping[str, Any]) -> dict[str, Any]:
    """The fields that are not null: in a table, and in what is written from one, null is no value.

    A column that a row does not use is null there.
    """
    return {name: value for name, value in fields.items() if value is not None}
