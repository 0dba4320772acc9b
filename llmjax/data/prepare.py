"""Sources to tokenised shards, once: train the tokenizer, encode, split, write, vouch.

A directory is finished when its manifest lies there. Everything before that is written to a
folder of its own and moved at the end, so a run that is killed leaves nothing that looks finished
and the next one starts over; one that finished is recognised by its fingerprint and left alone.
"""

import collections
import contextlib
import dataclasses
import fcntl
import hashlib
import importlib.metadata
import json
import logging
import os
import random
import shutil
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import rich.console
import rich.progress

from llmjax.data import config, documents, hub_tokenizer, shards, tokenizer

REJECTED_FILE = "rejected.jsonl"
PARTIAL_FOLDER = "partial"

# Texts are encoded together in lots of about this size: enough to keep the threads busy.
_LOT_CHARACTERS = 1 << 21
_PACKAGES = ("llmjax", "array-record", "grain", "numpy", "sentencepiece", "tokenizers")

_Inputs = Mapping[str, tuple[documents.File, ...]]

_log = logging.getLogger(__name__)


def prepare(
    settings: config.DataConfig, directory: str | Path, *, overwrite: bool = False
) -> shards.Manifest:
    """Turns the sources into tokenised shards in `directory`; does nothing where that is done.

    Documents go to the validation split by a hash of their text alone, so that neither their order
    nor the other documents matter, and copies of a text all land on the same side. Malformed
    documents are counted, and kept in `rejected.jsonl` with file, position and reason.

    Args:
        settings: sources, tokenizer and limits.
        directory: where the data will lie; made if need be.
        overwrite: replace data that another config, or other input files, left there.

    Returns:
        The manifest: what the directory holds.

    Raises:
        FileNotFoundError: a source has no files.
        ValueError: there are no sources, too much of one is malformed, a split came out empty, the
            tokenizer cannot be trained, or the directory holds something else.
    """
    if not settings.sources:
        raise ValueError("DataConfig.sources is empty: name at least one Source to read.")
    directory = Path(directory)
    inputs = {source.name: documents.find_files(source) for source in settings.sources}
    fingerprint = _fingerprint(settings, inputs)
    directory.mkdir(parents=True, exist_ok=True)
    with _lock(directory):
        done = _finished(directory, overwrite)
        if done is not None and done.fingerprint == fingerprint:
            return _reweighted(done, settings, directory)
        if done is not None and not overwrite:
            raise ValueError(_difference(directory, done, settings))
        _clear(directory)
        partial = directory / PARTIAL_FOLDER
        partial.mkdir()
        try:
            manifest = _build(settings, inputs, fingerprint, directory, partial)
            for path in partial.iterdir():
                path.rename(directory / path.name)
        finally:
            shutil.rmtree(partial)
        manifest.save(directory)
    return manifest


def split_of(text: bytes, validation_share: float) -> shards.SplitName:
    """The side of the split that a document's UTF-8 text falls on, whatever else there is."""
    draw = int.from_bytes(hashlib.blake2b(text, digest_size=8).digest(), "big")
    return "validation" if draw < validation_share * 2**64 else "train"


def _build(
    settings: config.DataConfig,
    inputs: _Inputs,
    fingerprint: str,
    directory: Path,
    partial: Path,
) -> shards.Manifest:
    """Writes tokenizer and shards to `partial`, and rejected documents to `directory`."""
    size = sum(file.size for files in inputs.values() for file in files)
    done = []
    with _Rejects(directory / REJECTED_FILE, settings) as rejects, _progress() as bar:
        task = bar.add_task("Training the tokenizer", total=None)
        encoder = tokenizer.train(settings.tokenizer, _sample(settings, inputs))
        encoder.save(partial)
        bar.reset(task, description="Writing shards", total=size)
        for source in settings.sources:
            items = _items(source, inputs[source.name], lambda read: bar.update(task, advance=read))
            texts = rejects.keep_aside(source, items)
            written = _write(settings, source, texts, encoder, partial)
            done.append(dataclasses.replace(written, rejected=rejects.counts(source)))
            _log.info("%s", done[-1])
    manifest = shards.Manifest(
        fingerprint=fingerprint,
        config=_plain(settings),
        tokenizer={
            "kind": encoder.kind,
            "vocab_size": encoder.vocab_size,
            "fingerprint": encoder.fingerprint,
        },
        dtype=shards.token_dtype(encoder.vocab_size).str,
        sources=tuple(done),
        versions={name: _version(name) for name in _PACKAGES},
    )
    _check_splits(manifest, settings)
    return manifest


def _write(
    settings: config.DataConfig,
    source: config.Source,
    texts: Iterator[str],
    encoder: tokenizer.Tokenizer,
    partial: Path,
) -> shards.SourceManifest:
    """Encodes one source's documents into its shards."""
    dtype = shards.token_dtype(encoder.vocab_size)
    writers = {
        split: shards.Writer(partial, source.name, split, settings.shard_tokens)
        for split in shards.SPLITS
    }
    num_threads = len(os.sched_getaffinity(0))
    for lot in _lots(texts):
        for text, ids in zip(lot, encoder.encode_batch(lot, num_threads), strict=True):
            data = text.encode()
            tokens = np.array([*encoder.opening, *ids, encoder.eos_id], dtype)
            writers[split_of(data, settings.validation_share)].write(tokens, len(data))
    return shards.SourceManifest(
        name=source.name,
        weight=source.weight,
        train=writers["train"].close(),
        validation=writers["validation"].close(),
    )


def _items(
    source: config.Source, files: Sequence[documents.File], advance: documents.Advance
) -> Iterator[documents.Item]:
    for file in files:
        yield from documents.read(file, source, advance)


def _lots(texts: Iterator[str]) -> Iterator[list[str]]:
    lot: list[str] = []
    size = 0
    for text in texts:
        lot.append(text)
        size += len(text)
        if size >= _LOT_CHARACTERS:
            yield lot
            lot, size = [], 0
    if lot:
        yield lot


def _sample(settings: config.DataConfig, inputs: _Inputs) -> Iterator[str]:
    """Training text for the tokenizer: the head of every file, held-out documents left out.

    Every source gives the same share of `sample_bytes` and every file of a source as well, at
    least 64 KiB, in an order that the files' names do not decide.
    """
    for source in settings.sources:
        files = list(inputs[source.name])
        random.Random(0).shuffle(files)
        budget = settings.tokenizer.sample_bytes // len(settings.sources)
        share = max(budget // len(files), 1 << 16)
        for file in files:
            taken = 0
            for item in documents.read(file, source):
                if isinstance(item, documents.Rejected):
                    continue
                data = item.encode()
                if split_of(data, settings.validation_share) == "train":
                    yield item
                    taken += len(data)
                if taken >= share:
                    break
            budget -= taken
            if budget <= 0:
                break


class _Rejects:
    """Keeps malformed documents aside, counts them, and says when a source has too many."""

    def __init__(self, path: Path, settings: config.DataConfig) -> None:
        self._path = path
        self._limit = settings.max_rejected_share
        self._counts: dict[str, collections.Counter[str]] = {}
        self._examples: dict[str, documents.Rejected] = {}

    def __enter__(self) -> "_Rejects":
        self._stream = self._path.open("w")
        return self

    def __exit__(self, *_: object) -> None:
        self._stream.close()

    def counts(self, source: config.Source) -> dict[str, int]:
        """Documents of the source that were rejected, by reason."""
        return dict(self._counts[source.name])

    def keep_aside(self, source: config.Source, items: Iterator[documents.Item]) -> Iterator[str]:
        """Passes the texts on; at the end, ValueError if too much else was among them."""
        counts = self._counts[source.name] = collections.Counter()
        self._examples = {}
        accepted = 0
        for item in items:
            if isinstance(item, str):
                accepted += 1
                yield item
                continue
            counts[item.reason] += item.count
            self._examples.setdefault(item.reason, item)
            self._stream.write(_rejected_line(source, item))
        self._stream.flush()
        if counts.total() > self._limit * (counts.total() + accepted):
            raise ValueError(self._complaint(source, counts, accepted))

    def _complaint(
        self, source: config.Source, counts: collections.Counter[str], accepted: int
    ) -> str:
        reasons = "; ".join(
            f"{count} × {reason} (first: {e.file}, {e.unit} {e.position})"
            for reason, count in counts.most_common(3)
            for e in [self._examples[reason]]
        )
        total = counts.total() + accepted
        return (
            f"source {source.name!r}: {counts.total()} of {total} documents are malformed "
            f"({counts.total() / total:.2%}), more than DataConfig.max_rejected_share="
            f"{self._limit} allows. {reasons}. All are listed in {self._path}. Mend the source, "
            "correct its settings, or raise the limit."
        )


def _rejected_line(source: config.Source, item: documents.Rejected) -> str:
    record = {
        "source": source.name,
        "file": item.file,
        item.unit: item.position,
        "reason": item.reason,
        "count": item.count,
        "raw": item.raw.decode(errors="backslashreplace"),
    }
    return json.dumps(record) + "\n"


def _check_splits(manifest: shards.Manifest, settings: config.DataConfig) -> None:
    for source in manifest.sources:
        if source.weight > 0 and not source.train.documents:
            raise ValueError(
                f"source {source.name!r} has no training documents: it holds "
                f"{source.validation.documents} in all. Give it more text, or a smaller "
                "DataConfig.validation_share."
            )
    total = manifest.split("train").documents
    if settings.validation_share > 0 and not manifest.split("validation").documents:
        enough = min(0.5, 5 / max(total, 1))
        raise ValueError(
            f"none of {total} documents fell into the validation split. Raise "
            f"DataConfig.validation_share (now {settings.validation_share}; {enough:.2g} would "
            f"hold out about {enough * total:.0f}), set it to 0 to do without, or cut the text "
            "into more documents (Source.split, Source.document_bytes)."
        )


def _fingerprint(settings: config.DataConfig, inputs: _Inputs) -> str:
    files = {
        name: [(file.name, file.size, file.modified_ns) for file in files]
        for name, files in inputs.items()
    }
    record = json.dumps([shards.FORMAT_VERSION, _plain(settings), files], sort_keys=True)
    return hashlib.sha256(record.encode()).hexdigest()


def _plain(settings: config.DataConfig) -> dict[str, Any]:
    """The settings that decide what the shards hold, as plain values: no paths, no weights."""
    fields = json.loads(json.dumps(dataclasses.asdict(settings)))
    del fields["directory"]
    for source in fields["sources"]:
        del source["path"], source["weight"]
    del fields["tokenizer"]["path"]
    if settings.tokenizer.kind == "hub":
        hashes = hashlib.sha256()
        for content in hub_tokenizer.read_files(Path(settings.tokenizer.path)).values():
            hashes.update(hashlib.sha256(content).digest())
        fields["tokenizer"]["files"] = hashes.hexdigest()
    return fields


def _finished(directory: Path, overwrite: bool) -> shards.Manifest | None:
    """The manifest of whole data; None where there are none, or none worth keeping."""
    try:
        return shards.load_manifest(directory)
    except FileNotFoundError:
        return None
    except ValueError:
        if overwrite:
            return None
        raise


def _reweighted(
    manifest: shards.Manifest, settings: config.DataConfig, directory: Path
) -> shards.Manifest:
    """The manifest with the config's weights, which decide nothing that lies in shards."""
    sources = tuple(
        dataclasses.replace(done, weight=source.weight)
        for done, source in zip(manifest.sources, settings.sources, strict=True)
    )
    if sources != manifest.sources:
        manifest = dataclasses.replace(manifest, sources=sources)
        manifest.save(directory)
    return manifest


def _difference(directory: Path, done: shards.Manifest, settings: config.DataConfig) -> str:
    wanted = _plain(settings)
    changes = [
        f"{name}: {done.config.get(name)} there, {value} now"
        for name, value in wanted.items()
        if done.config.get(name) != value
    ]
    return (
        f"{str(directory)!r} holds data that were prepared differently "
        f"({'; '.join(changes) or 'the input files have changed since'}). Choose another "
        "directory, or pass overwrite=True to replace them."
    )


def _clear(directory: Path) -> None:
    """Removes what an earlier or unfinished `prepare` left, the manifest first."""
    for name in (
        shards.MANIFEST_FILE,
        REJECTED_FILE,
        tokenizer.META_FILE,
        tokenizer.MODEL_FILE,
        *hub_tokenizer.FILES,
    ):
        (directory / name).unlink(missing_ok=True)
    for name in (shards.SHARD_FOLDER, PARTIAL_FOLDER):
        shutil.rmtree(directory / name, ignore_errors=True)


@contextlib.contextmanager
def _lock(directory: Path) -> Iterator[None]:
    """Lets one process at a time prepare a directory; a second waits and finds the work done."""
    with (directory / ".lock").open("w") as stream:
        fcntl.flock(stream, fcntl.LOCK_EX)
        yield


def _progress() -> rich.progress.Progress:
    """A bar of input bytes with rate and time left; on stderr, and only on a terminal."""
    return rich.progress.Progress(
        rich.progress.TextColumn("{task.description}"),
        rich.progress.BarColumn(),
        rich.progress.DownloadColumn(),
        rich.progress.TransferSpeedColumn(),
        rich.progress.TimeRemainingColumn(),
        console=rich.console.Console(stderr=True),
        disable=not sys.stderr.isatty(),
    )


def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "not installed"
