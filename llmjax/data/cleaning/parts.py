"""Splits a source into parts to clean separately: small files, one file, or a range of a file."""

import dataclasses
import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from llmjax.data import config, documents

# Changes when the code produces other output from the same settings and input.
FORMAT_VERSION = 2


@dataclasses.dataclass(frozen=True)
class Part:
    """A part of a source's input.

    Attributes:
        source: the source that it belongs to.
        number: index in document order, from 0.
        files: whole files, or a range of one.
    """

    source: config.Source
    number: int
    files: tuple[documents.File, ...]

    @property
    def name(self) -> str:
        """The name of its output files."""
        return f"{self.number:05}"

    @property
    def size(self) -> int:
        """Bytes of input."""
        return sum(file.size for file in self.files)

    def fingerprint(self, *others: Any) -> str:
        """Hash of the input, how it is read, and everything else that determines the output."""
        source = dataclasses.asdict(self.source)
        del source["path"], source["weight"]
        files = [(f.name, f.size, f.modified_ns, f.start, f.stop) for f in self.files]
        record = json.dumps([FORMAT_VERSION, source, files, *others], sort_keys=True)
        return hashlib.sha256(record.encode()).hexdigest()


def cut(settings: config.DataConfig, inputs: Mapping[str, Sequence[documents.File]]) -> list[Part]:
    """Splits all sources into parts of about `part_bytes`, in order."""
    size = settings.cleaning.part_bytes
    return [
        Part(source, number, files)
        for source in settings.sources
        for number, files in enumerate(_groups(source, inputs[source.name], size))
    ]


def _groups(
    source: config.Source, files: Sequence[documents.File], size: int
) -> Iterator[tuple[documents.File, ...]]:
    group: list[documents.File] = []
    held = 0
    for file in files:
        for piece in documents.split(file, source, size):
            if group and held + piece.size > size:
                yield tuple(group)
                group, held = [], 0
            group.append(piece)
            held += piece.size
    if group:
        yield tuple(group)
