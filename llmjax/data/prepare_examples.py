"""Prepares fine-tuning examples: parses, encodes, splits, and writes shards with a manifest.

This does for examples what `prepare` does for documents, with the same directory layout. The
tokenizer is that of the model to be fine-tuned. A split may depend on all examples, so they are
first written to one file and distributed to the shards at the end.
"""

import dataclasses
import datetime
import functools
import hashlib
import json
import logging
import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from llmjax.data import (
    chat,
    config,
    directories,
    documents,
    examples,
    records,
    rejects,
    shards,
    splits,
    tokenized,
)
from llmjax.data.tokenizer import Tokenizer

# Numbers up to this many times the number of distinct labels may be labels.
_SPARSE = 100

_log = logging.getLogger(__name__)


def prepare_examples(
    settings: config.ExampleConfig,
    directory: str | Path,
    tokenizer: Tokenizer,
    *,
    overwrite: bool = False,
) -> shards.Manifest:
    """Turns sources of examples into tokenised shards, unless they are there already.

    Records that are malformed, hold no example of the kind, or leave nothing to train on are
    counted, and kept in `rejected.jsonl` with file, position and reason.

    Args:
        settings: sources, kind, template, lengths and split.
        directory: folder of the examples; created if necessary.
        tokenizer: that of the model to be fine-tuned; saved with the examples.
        overwrite: whether to replace data from another config or other input files.

    Returns:
        The manifest of the directory.

    Raises:
        FileNotFoundError: a source has no files.
        ValueError: there are no sources, too much of one is rejected or all of it (the message
            shows the first), the template does not fit the tokenizer, a split is empty, or the
            directory holds other data.
    """
    if not settings.sources:
        raise ValueError("ExampleConfig.sources is empty: name at least one ExampleSource to read.")
    template = None
    if settings.kind != "classification":
        template = chat.load_template(settings.template, tokenizer)
    directory = Path(directory)
    inputs = {
        source.name: directories.find_inputs(source, directory, documents.RECORD_SUFFIXES)
        for source in settings.sources
    }
    others = (tokenizer.fingerprint, _template_fingerprint(template))
    fingerprint = directories.fingerprint(settings, inputs, *others)
    build = functools.partial(_build, settings, inputs, tokenizer, template, fingerprint, directory)
    return directories.make(directory, settings, fingerprint, build, overwrite=overwrite)


def _build(
    settings: config.ExampleConfig,
    inputs: directories.Inputs,
    tokenizer: Tokenizer,
    template: chat.ChatTemplate | None,
    fingerprint: str,
    directory: Path,
    partial: Path,
) -> shards.Manifest:
    """Writes tokenizer and shards to `partial`, and rejected records to `directory`."""
    encoder = tokenized.Encoder(settings, tokenizer, template)
    aside = rejects.Rejects(directory / rejects.REJECTED_FILE, settings)
    with aside, (partial / "pile").open("w+b") as stream:
        pile = _Pile(stream)
        _read_all(settings, inputs, encoder, aside, pile)
        labels = _labels(settings, pile.labels)
        written = _deal(settings, pile, labels, tokenizer, partial)
    (partial / "pile").unlink()
    tokenizer.save(partial)
    done = [dataclasses.replace(w, rejected=aside.counts(w.name)) for w in written]
    for source in done:
        _log.info("%s", source)
    about = shards.Examples(
        kind=settings.kind,
        labels=labels,
        longest=pile.longest,
        responses=pile.responses,
        margins=pile.margins,
        cut=encoder.cut,
        template=_template_fingerprint(template),
    )
    manifest = directories.manifest(settings, fingerprint, tokenizer, done, about)
    _check_splits(manifest, settings)
    return manifest


@dataclasses.dataclass(frozen=True)
class _Item:
    """A parsed example: its tokens, and the keys for its split and label."""

    example: tokenized.Tokenized
    key: bytes
    label: str | int | None
    group: str | float | None


class _Pile:
    """Examples in a file, in reading order, with the keys for splitting in memory."""

    def __init__(self, stream: BinaryIO) -> None:
        self._stream = stream
        self._sizes: list[int] = []
        self.sources: list[str] = []
        self.keys: list[bytes] = []
        self.labels: list[str | int | None] = []
        self.groups: list[str | float | None] = []
        self.longest, self.responses, self.margins = 0, 1, False

    def add(self, source: str, item: _Item) -> None:
        record = item.example.to_bytes()
        self._stream.write(record)
        self._sizes.append(len(record))
        self.sources.append(source)
        self.keys.append(item.key)
        self.labels.append(item.label)
        self.groups.append(item.group)
        self.longest = max(self.longest, item.example.length)
        self.responses = max(self.responses, len(item.example.sequences))
        self.margins |= item.example.margin != 0

    def __iter__(self) -> Iterator[tokenized.Tokenized]:
        self._stream.seek(0)
        for size in self._sizes:
            yield tokenized.Tokenized.from_bytes(self._stream.read(size))


def _read_all(
    settings: config.ExampleConfig,
    inputs: directories.Inputs,
    encoder: tokenized.Encoder,
    aside: rejects.Rejects,
    pile: _Pile,
) -> None:
    size = sum(file.size for files in inputs.values() for file in files)
    with directories.progress() as bar:
        task = bar.add_task("Reading examples", total=size)
        for source in settings.sources:
            before = len(pile.keys)
            items = _items(
                settings,
                source,
                inputs[source.name],
                encoder,
                lambda read: bar.update(task, advance=read),
            )
            for item in aside.keep_aside(source.name, items):
                pile.add(source.name, item)
            if len(pile.keys) == before:
                if aside.counts(source.name):
                    raise ValueError(aside.complaint(source.name))
                raise ValueError(f"source {source.name!r} holds no records: {source.path!r}.")


def _items(
    settings: config.ExampleConfig,
    source: config.ExampleSource,
    files: Sequence[documents.File],
    encoder: tokenized.Encoder,
    advance: documents.Advance,
) -> Iterator[_Item | documents.Rejected]:
    for file in files:
        for record in records.read(file, advance):
            if isinstance(record, documents.Rejected):
                yield record
                continue
            try:
                yield _item(settings, source, record, encoder)
            except examples.UnfitError as error:
                yield record.rejected(str(error))


def _item(
    settings: config.ExampleConfig,
    source: config.ExampleSource,
    record: records.Record,
    encoder: tokenized.Encoder,
) -> _Item:
    example = examples.parse(record.fields, settings.kind, source)
    if settings.kind == "classification":
        _check_label(settings, example.label)
    group = None
    if field := settings.split_field:
        if field not in record.fields:
            raise examples.UnfitError(f"no field {field!r}, by which examples are split")
        value = record.fields[field]
        group = _time(value) if settings.split == "time" else json.dumps(value, default=str)
    key = hashlib.blake2b(example.key.encode(), digest_size=16).digest()
    return _Item(encoder.encode(example), key, example.label, group)


def _time(value: Any) -> float:
    """Seconds since 1970 of a number or an ISO 8601 time, which is UTC unless it names a zone."""
    if isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < math.inf:
        return value
    try:
        time = datetime.datetime.fromisoformat(str(value))
    except ValueError:
        raise examples.UnfitError(
            "the time to split by is neither a number nor a time in ISO 8601"
        ) from None
    zone = time.tzinfo or datetime.UTC
    return time.replace(tzinfo=zone).timestamp()


def _check_label(settings: config.ExampleConfig, label: str | int | None) -> None:
    known = settings.labels
    if known and (label is None or not examples.is_label(label, known)):
        raise examples.UnfitError(f"the label is not one of {', '.join(known)}")


def _labels(settings: config.ExampleConfig, found: Sequence[str | int | None]) -> tuple[str, ...]:
    """Label names by number."""
    if settings.kind == "judged":
        return ("undesirable", "desirable")
    if settings.kind != "classification" or settings.labels:
        return settings.labels
    names = sorted({label for label in found if isinstance(label, str)})
    numbers = [label for label in found if isinstance(label, int)]
    if names and numbers:
        raise ValueError(
            f"labels are names ({', '.join(names[:3])}) and numbers ({numbers[0]}) mixed: name "
            "them in the order of their numbers in ExampleConfig.labels."
        )
    if numbers and max(numbers) > _SPARSE * len(set(numbers)):
        raise ValueError(
            f"labels are numbers up to {max(numbers)}, of which only {len(set(numbers))} occur, so "
            "they seem to be codes or scores: write them as names, in quotes."
        )
    return tuple(names) if names else tuple(map(str, range(max(numbers) + 1)))


def _held_out(settings: config.ExampleConfig, pile: _Pile, labels: Sequence[int]) -> np.ndarray:
    """Which examples are held out for validation, bool [N]."""
    seed, share = settings.split_seed, settings.validation_share
    if settings.split == "time":
        return splits.by_time(pile.groups, share)
    if settings.folds:
        deal = {
            "hash": lambda k: splits.folds(pile.keys, k, seed),
            "stratified": lambda k: splits.stratified_folds(pile.keys, labels, k, seed),
            "grouped": lambda k: splits.grouped_folds(pile.groups, k, seed),
        }[settings.split]
        return deal(settings.folds) == settings.fold
    if settings.split == "stratified":
        return splits.stratified(pile.keys, labels, share, seed)
    if settings.split == "grouped":
        return splits.grouped(pile.groups, share, seed)
    return splits.random(pile.keys, share, seed)


def _deal(
    settings: config.ExampleConfig,
    pile: _Pile,
    names: Sequence[str],
    tokenizer: Tokenizer,
    partial: Path,
) -> list[shards.SourceManifest]:
    """Writes every example to the shards of its source and split."""
    numbers = {name: number for number, name in enumerate(names)}
    labels = [
        numbers[label] if isinstance(label, str) else tokenized.NO_LABEL if label is None else label
        for label in pile.labels
    ]
    held_out = _held_out(settings, pile, labels)
    writer = functools.partial(shards.Writer, partial, shard_tokens=settings.shard_tokens)
    writers = {
        (source.name, split): writer(source.name, split)
        for source in settings.sources
        for split in shards.SPLITS
    }
    token_bytes = tokenizer.token_bytes
    for name, out, label, example in zip(pile.sources, held_out, labels, pile, strict=True):
        record = dataclasses.replace(example, label=label).to_bytes()
        tokens = np.concatenate(example.sequences)
        size = int(token_bytes[tokens[tokens >= 0]].sum())
        writers[name, "validation" if out else "train"].write(record, len(tokens), size)
    return [
        shards.SourceManifest(
            name=source.name,
            weight=source.weight,
            train=writers[source.name, "train"].close(),
            validation=writers[source.name, "validation"].close(),
        )
        for source in settings.sources
    ]


def _check_splits(manifest: shards.Manifest, settings: config.ExampleConfig) -> None:
    for source in manifest.sources:
        if source.weight > 0 and not source.train.documents:
            raise ValueError(
                f"source {source.name!r} has no training examples: all of its "
                f"{source.validation.documents} are held out. Give it more, lower "
                "validation_share, or use another split: with 'hash', examples with the same "
                "prompt stay together."
            )
    total = manifest.split("train").documents
    wanted = settings.folds or settings.validation_share > 0
    if wanted and not manifest.split("validation").documents:
        raise ValueError(
            f"none of {total} examples fell into the validation split. Raise validation_share "
            f"(now {settings.validation_share}), set it to 0 to do without, or split otherwise: "
            "with 'hash', examples with the same prompt stay together."
        )


def _template_fingerprint(template: chat.ChatTemplate | None) -> str:
    return "" if template is None else hashlib.sha256(template.source.encode()).hexdigest()
