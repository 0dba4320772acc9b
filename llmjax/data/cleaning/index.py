"""Indices for comparing documents: hashes, and the documents that have them.

An index is built from one shard at a time, in a stream. Results for a corpus depend on the indices
of all its shards, but not on how documents were assigned to shards or on the order of shards. Saved
indices are memory-mapped and read in ranges of hashes, so comparing them takes the memory of one
range, not of the corpus.
"""

import array
import dataclasses
import functools
import json
import re
import shutil
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import numpy as np

from llmjax.data.cleaning.document import Document

# (source, file): documents of one file differ only in their position.
File = tuple[str, str]

# Rows sorted at once: a quarter of a gigabyte including what sorting needs.
PIECE_ROWS = 1 << 22
_POSITION_BITS = np.uint64(32)
_POSITIONS = np.uint64((1 << 32) - 1)
# A position in canonical form, so that the `id` can be reconstructed.
_POSITION = re.compile(r"0|[1-9][0-9]{0,9}")


def place(document: Document) -> tuple[File, int]:
    """A document's file, and its position there plus one, which orders the documents.

    An `id` is `file:position`; any other id is a file with one document, at place 0.
    """
    file, _, position = document.id.rpartition(":")
    if _POSITION.fullmatch(position) and int(position) < _POSITIONS:
        return (document.source, file), int(position) + 1
    return (document.source, document.id), 0


@dataclasses.dataclass(frozen=True)
class Files:
    """The sorted files of documents, which determine the documents' keys.

    A document's key is its file's number followed by 32 bits of its place there. Keys are ordered
    like documents: by source, file and position.
    """

    names: tuple[File, ...]

    @functools.cached_property
    def _numbers(self) -> dict[File, int]:
        return {name: number for number, name in enumerate(self.names)}

    def key(self, document: Document) -> int | None:
        """The document's key; None if its file is not among these."""
        file, position = place(document)
        number = self._numbers.get(file)
        return None if number is None else _key(number, position)

    def id(self, key: int) -> str:
        """The `id` of the document with this key."""
        _, file = self.names[key >> int(_POSITION_BITS)]
        place_there = key & int(_POSITIONS)
        return f"{file}:{place_there - 1}" if place_there else file

    def renumbered(self, keys: np.ndarray, other: "Files") -> np.ndarray:
        """The keys in `other`, uint64 [N], of the documents that have `keys` here."""
        numbers = np.array([other._numbers[name] for name in self.names], np.uint64)
        return (numbers[keys >> _POSITION_BITS] << _POSITION_BITS) | (keys & _POSITIONS)


def _key(number: int, position: int) -> int:
    return number << int(_POSITION_BITS) | position


@dataclasses.dataclass(frozen=True, eq=False)
class Index:
    """The hashes of a shard's documents, in one or more tables.

    Attributes:
        settings: settings of the hashes; indices with different settings cannot be compared.
        files: files of its documents.
        hashes: one array per table, uint64 [N], ascending.
        keys: the documents that have these hashes, likewise.
    """

    settings: str
    files: Files
    hashes: tuple[np.ndarray, ...]
    keys: tuple[np.ndarray, ...]

    def save(self, folder: str | Path) -> None:
        """Writes the index into a folder atomically."""
        folder = Path(folder)
        partial = folder.with_name(folder.name + ".partial")
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
        header = {"settings": self.settings, "files": self.files.names, "tables": len(self.hashes)}
        (partial / "index.json").write_text(json.dumps(header))
        for table, rows in enumerate(zip(self.hashes, self.keys, strict=True)):
            np.save(partial / f"{table:04d}.npy", np.stack(rows))
        shutil.rmtree(folder, ignore_errors=True)
        partial.rename(folder)


def load(folder: str | Path) -> Index:
    """Loads a saved index; its tables are memory-mapped."""
    folder = Path(folder)
    header = json.loads((folder / "index.json").read_text())
    tables = [
        np.load(folder / f"{table:04d}.npy", mmap_mode="r") for table in range(header["tables"])
    ]
    return Index(
        settings=header["settings"],
        files=Files(tuple((source, file) for source, file in header["files"])),
        hashes=tuple(table[0] for table in tables),
        keys=tuple(table[1] for table in tables),
    )


def build(rows: Iterable[tuple[Document, np.ndarray]], tables: int, settings: str) -> Index:
    """Builds the index of a shard in one pass.

    Args:
        rows: documents, each with its hashes, uint64 [R, tables]: R rows for every table.
        tables: number of tables.
        settings: settings that the hashes depend on.
    """
    numbers: dict[File, int] = {}
    hashes, keys = array.array("Q"), array.array("Q")
    for document, found in rows:
        file, position = place(document)
        hashes.frombytes(found.tobytes())
        keys.extend([_key(numbers.setdefault(file, len(numbers)), position)] * len(found))
    files = Files(tuple(sorted(numbers)))
    columns = np.frombuffer(hashes, np.uint64).reshape(-1, tables).T if keys else None
    if columns is None:
        columns = np.zeros((tables, 0), np.uint64)
    documents = Files(tuple(numbers)).renumbered(np.array(keys, np.uint64), files)
    orders = [np.lexsort((documents, column)) for column in columns]
    return Index(
        settings,
        files,
        tuple(column[order] for column, order in zip(columns, orders, strict=True)),
        tuple(documents[order] for order in orders),
    )


def all_files(indices: Sequence[Index], settings: str) -> Files:
    """The files of all indices.

    Raises:
        ValueError: an index was made with other settings.
    """
    for index in indices:
        if index.settings != settings:
            raise ValueError(
                f"an index was made with {index.settings}, not with {settings}: compare with the "
                "settings that it was made with, or make it again."
            )
    return Files(tuple(sorted({name for index in indices for name in index.files.names})))


def rows(
    indices: Sequence[Index], table: int, files: Files, piece_rows: int = PIECE_ROWS
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """All rows of one table of all indices, ascending, in pieces that do not split equal hashes.

    Args:
        indices: indices of all shards, in any order.
        table: index of the table.
        files: all files, which determine the returned keys.
        piece_rows: approximate number of rows in a piece.

    Yields:
        Hashes and keys, both uint64 [N], sorted by hash, then key.
    """
    total = sum(len(index.hashes[table]) for index in indices)
    pieces = max(1, -(-total // piece_rows))
    edges = np.array([(i << 64) // pieces for i in range(1, pieces)], np.uint64)
    cuts = [
        [0, *np.searchsorted(index.hashes[table], edges), len(index.hashes[table])]
        for index in indices
    ]
    for i in range(pieces):
        parts = [slice(cut[i], cut[i + 1]) for cut in cuts]
        found = list(zip(indices, parts, strict=True))
        hashes = np.concatenate([index.hashes[table][part] for index, part in found])
        keys = np.concatenate(
            [index.files.renumbered(index.keys[table][part], files) for index, part in found]
        )
        order = np.lexsort((keys, hashes))
        yield hashes[order], keys[order]
