"""Tokenised documents on disk: ArrayRecord shards and their manifest.

A record is a document (`bos`, its tokens, `eos`, as little-endian uint16, or uint32 for a larger
vocabulary) or a fine-tuning example, as `tokenized.Tokenized` writes it. Groups of one record make
each record readable by its index.
"""

import dataclasses
import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, Self

import numpy as np
from array_record.python import array_record_module

MANIFEST_FILE = "manifest.json"
SHARD_FOLDER = "shards"
SUFFIX = ".arrayrecord"
FORMAT_VERSION = 1

SplitName = Literal["train", "validation"]
SPLITS: tuple[SplitName, ...] = ("train", "validation")

_OPTIONS = "group_size:1,zstd:1"


@dataclasses.dataclass(frozen=True)
class Shard:
    """A file of documents. `file` is relative to the data directory; `checksum` is BLAKE2b."""

    file: str
    documents: int
    tokens: int
    size: int
    checksum: str


@dataclasses.dataclass(frozen=True)
class Split:
    """One side of the train/validation split: tokens include bos and eos, bytes are the text's."""

    documents: int = 0
    tokens: int = 0
    bytes: int = 0
    shards: tuple[Shard, ...] = ()

    def __add__(self, other: Self) -> "Split":
        return Split(
            self.documents + other.documents,
            self.tokens + other.tokens,
            self.bytes + other.bytes,
            self.shards + other.shards,
        )


@dataclasses.dataclass(frozen=True)
class SourceManifest:
    """The result for a source: its splits, and the number of rejected documents by reason."""

    name: str
    weight: float
    train: Split
    validation: Split
    rejected: Mapping[str, int] = dataclasses.field(default_factory=dict)

    def __str__(self) -> str:
        parts = [f"{self.split(name).documents} {name}" for name in SPLITS]
        tokens = sum(self.split(name).tokens for name in SPLITS)
        rejected = sum(self.rejected.values())
        return f"{self.name}: {' + '.join(parts)} documents, {tokens} tokens, {rejected} rejected"

    def split(self, name: SplitName) -> Split:
        """The source's part of a split."""
        return self.train if name == "train" else self.validation


@dataclasses.dataclass(frozen=True)
class Examples:
    """Fields that only a manifest of fine-tuning examples has.

    Attributes:
        kind: `ExampleConfig.kind`.
        labels: label names by number; empty if the examples have none.
        longest: tokens of the longest example, over all its sequences.
        responses: maximum number of answers in a comparison; 1 for other kinds.
        margins: whether any example has a margin.
        template: fingerprint of the chat template; "" if none is needed.
        cut: number of examples that were longer than `ExampleConfig.max_length`.
    """

    kind: str
    labels: tuple[str, ...]
    longest: int
    responses: int
    margins: bool
    template: str
    cut: int = 0


@dataclasses.dataclass(frozen=True)
class Manifest:
    """The contents of a data directory; it is written last, so its presence means complete data.

    Attributes:
        fingerprint: hash of the config and of the names, sizes and times of the input files.
        config: the `DataConfig` as plain values.
        tokenizer: `kind`, `vocab_size` and `fingerprint` of the tokenizer.
        dtype: NumPy name of the tokens' type on disk.
        sources: one entry per source, in the config's order.
        versions: versions of the packages that made the data.
        version: version of this layout.
        examples: present only for fine-tuning examples.
    """

    fingerprint: str
    config: Mapping[str, Any]
    tokenizer: Mapping[str, Any]
    dtype: str
    sources: tuple[SourceManifest, ...]
    versions: Mapping[str, str]
    version: int = FORMAT_VERSION
    examples: Examples | None = None

    def split(self, name: SplitName) -> Split:
        """All documents of a split, over all sources."""
        return sum((source.split(name) for source in self.sources), Split())

    def save(self, directory: Path) -> None:
        """Writes the manifest atomically."""
        partial = directory / (MANIFEST_FILE + ".partial")
        fields = dataclasses.asdict(self)
        if self.examples is None:
            del fields["examples"]
        partial.write_text(json.dumps(fields, indent=2) + "\n")
        partial.replace(directory / MANIFEST_FILE)


def load_manifest(directory: str | Path) -> Manifest:
    """Reads a data directory's manifest.

    Raises:
        FileNotFoundError: the directory holds no prepared data, or a shard is missing.
        ValueError: another version of llmjax wrote it, or a shard has the wrong size.
    """
    path = Path(directory) / MANIFEST_FILE
    if not path.is_file():
        raise FileNotFoundError(
            f"no prepared data in {str(directory)!r} ({MANIFEST_FILE} is missing). Run "
            "`prepare` on it first; an interrupted one continues."
        )
    fields = json.loads(path.read_text())
    if fields.get("version") != FORMAT_VERSION:
        raise ValueError(
            f"{path} has layout version {fields.get('version')}, but this llmjax reads "
            f"{FORMAT_VERSION}. Prepare the data again in another directory."
        )
    fields["sources"] = tuple(_source(source) for source in fields["sources"])
    if "examples" in fields:
        labels = tuple(fields["examples"]["labels"])
        fields["examples"] = Examples(**{**fields["examples"], "labels": labels})
    manifest = Manifest(**fields)
    for split in SPLITS:
        for shard in manifest.split(split).shards:
            _check_size(Path(directory) / shard.file, shard.size)
    return manifest


def verify(directory: str | Path) -> None:
    """Verifies the checksum of every shard; raises ValueError at the first that differs."""
    manifest = load_manifest(directory)
    for split in SPLITS:
        for shard in manifest.split(split).shards:
            path = Path(directory) / shard.file
            if checksum(path) != shard.checksum:
                raise ValueError(f"{path} is damaged: its checksum differs. Prepare again.")


def token_dtype(vocab_size: int) -> np.dtype:
    """The smallest type that holds every token."""
    return np.dtype("<u2" if vocab_size <= 1 << 16 else "<u4")


def checksum(path: Path) -> str:
    """BLAKE2b of a file's bytes, in hex."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, lambda: hashlib.blake2b(digest_size=16)).hexdigest()


class Writer:
    """Writes one source's documents of one split, with a new shard every `shard_tokens` tokens.

    Shards are written below `directory`, under their final relative names.

    Args:
        directory: folder of the data.
        name: the source's name.
        split: the side of the split.
        shard_tokens: a shard is closed once it holds this many tokens.
        progress: a folder that records the finished shards. Those that it records are not written
            again: the first `done.documents` documents must be left out.

    Attributes:
        done: what the finished shards hold.
    """

    def __init__(
        self,
        directory: Path,
        name: str,
        split: SplitName,
        shard_tokens: int,
        progress: Path | None = None,
    ) -> None:
        self._directory = directory
        self._name = f"{SHARD_FOLDER}/{split}/{name}"
        self._shard_tokens = shard_tokens
        self._record = progress / f"{split}-{name}.json" if progress else None
        self.done = _finished(self._record, directory)
        self._open = Split()
        self._writer: array_record_module.ArrayRecordWriter | None = None

    def write(self, record: bytes, tokens: int, text_bytes: int) -> None:
        """Appends a document or example: its record, number of tokens, and bytes of text."""
        if self._writer is None:
            path = self._path()
            path.parent.mkdir(parents=True, exist_ok=True)
            self._writer = array_record_module.ArrayRecordWriter(str(path), _OPTIONS)
        self._writer.write(record)
        self._open += Split(1, tokens, text_bytes)
        if self._open.tokens >= self._shard_tokens:
            self._finish_shard()

    def close(self) -> Split:
        """Finishes the last shard and returns what was written."""
        if self._writer is not None:
            self._finish_shard()
        return self.done

    def _path(self) -> Path:
        return self._directory / f"{self._name}-{len(self.done.shards):05d}{SUFFIX}"

    def _finish_shard(self) -> None:
        assert self._writer is not None
        path = self._path()
        self._writer.close()
        self._writer = None
        shard = Shard(
            path.relative_to(self._directory).as_posix(),
            self._open.documents,
            self._open.tokens,
            path.stat().st_size,
            checksum(path),
        )
        self.done += dataclasses.replace(self._open, shards=(shard,))
        self._open = Split()
        if self._record is not None:
            partial = self._record.with_suffix(".partial")
            partial.write_text(json.dumps(dataclasses.asdict(self.done)))
            partial.replace(self._record)


def _source(fields: dict[str, Any]) -> SourceManifest:
    split: dict[str, Any] = {name: _split(fields[name]) for name in SPLITS}
    return SourceManifest(**{**fields, **split})


def _split(fields: dict[str, Any]) -> Split:
    return Split(**{**fields, "shards": tuple(Shard(**shard) for shard in fields["shards"])})


def _finished(record: Path | None, directory: Path) -> Split:
    """The shards that a killed run finished, if all of them are as it left them."""
    if record is None or not record.is_file():
        return Split()
    found = _split(json.loads(record.read_text()))
    intact = all(checksum(directory / shard.file) == shard.checksum for shard in found.shards)
    return found if intact else Split()


def _check_size(path: Path, size: int) -> None:
    if not path.is_file():
        raise FileNotFoundError(f"{path} is missing. Restore it, or prepare the data again.")
    if path.stat().st_size != size:
        raise ValueError(
            f"{path} has {path.stat().st_size} bytes instead of {size}. Restore it, or prepare "
            "the data again."
        )
