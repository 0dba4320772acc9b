"""Rejected input: counts it, stores it for inspection, and fails if there is too much of it."""

import collections
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TypeVar

from llmjax.data import config, documents

REJECTED_FILE = "rejected.jsonl"

T = TypeVar("T")
Settings = config.DataConfig | config.ExampleConfig


class Rejects:
    """Stores and counts malformed input, and fails if a source has too much of it.

    Args:
        path: the file to store it in.
        settings: settings with the maximum share of a source that may be malformed.
    """

    def __init__(self, path: Path, settings: Settings) -> None:
        self._path = path
        self._settings = settings
        self._counts: dict[str, collections.Counter[str]] = {}
        self._examples: dict[str, documents.Rejected] = {}
        self._accepted = 0

    def __enter__(self) -> "Rejects":
        self._stream = self._path.open("w")
        return self

    def __exit__(self, *_: object) -> None:
        self._stream.close()

    def counts(self, source: str) -> dict[str, int]:
        """The number of rejected pieces of the source, by reason."""
        return dict(self._counts[source])

    def keep_aside(self, source: str, items: Iterator[T | documents.Rejected]) -> Iterator[T]:
        """Passes on what is intact; raises ValueError at the end if too much was rejected."""
        counts = self._counts[source] = collections.Counter()
        self._examples, self._accepted = {}, 0
        for item in items:
            if not isinstance(item, documents.Rejected):
                self._accepted += 1
                yield item
                continue
            counts[item.reason] += item.count
            self._examples.setdefault(item.reason, item)
            self._stream.write(_rejected_line(source, item))
        self._stream.flush()
        if counts.total() > self._settings.max_rejected_share * self._total(source):
            raise ValueError(self.complaint(source))

    def complaint(self, source: str) -> str:
        """Describes what was wrong with the source read last, with the first of each kind."""
        first = {
            reason: (f"{e.file}, {e.unit} {e.position}", e.raw.decode(errors="backslashreplace"))
            for reason, e in self._examples.items()
        }
        counts, total = self._counts[source], self._total(source)
        return complaint(source, counts, total, first, self._settings, self._path)

    def _total(self, source: str) -> int:
        return self._counts[source].total() + self._accepted


def complaint(
    source: str,
    counts: collections.Counter[str],
    total: int,
    first: Mapping[str, tuple[str, str]],
    settings: Settings,
    where: Path,
) -> str:
    """The error message that too much of a source is malformed.

    Args:
        source: its name.
        counts: number of malformed pieces, by reason.
        total: number of all pieces.
        first: location and content of the first piece of each reason.
        settings: whose limit is exceeded.
        where: the file or folder that lists all of them.
    """
    reasons = "; ".join(
        f"{count} × {reason} (first: {first[reason][0]})" for reason, count in counts.most_common(3)
    )
    what, fields = "examples", "form, fields"
    if isinstance(settings, config.DataConfig):
        what, fields = "documents", "text_field, split"
    return (
        f"source {source!r}: {counts.total()} of {total} {what} are malformed "
        f"({counts.total() / total:.2%}), more than max_rejected_share="
        f"{settings.max_rejected_share} allows. "
        f"{reasons}, which is: {first[counts.most_common(1)[0][0]][1] or 'empty'}. All are listed "
        f"in {where}. Fix the source, correct its settings ({fields}), or raise the limit."
    )


def _rejected_line(source: str, item: documents.Rejected) -> str:
    record = {
        "source": source,
        "file": item.file,
        item.unit: item.position,
        "reason": item.reason,
        "count": item.count,
        "raw": item.raw.decode(errors="backslashreplace"),
    }
    return json.dumps(record) + "\n"
