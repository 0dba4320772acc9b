"""Prepares documents: trains the tokenizer, encodes, splits, and writes shards with a manifest."""

import contextlib
import dataclasses
import functools
import logging
import os
import random
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from llmjax.data import config, directories, documents, rejects, shards, splits, tokenizer
from llmjax.data.cleaning import engines, perplexity, pipeline
from llmjax.data.cleaning.perplexity import Scorer

# Texts are encoded in lots of about this size, enough to keep the threads busy.
_LOT_CHARACTERS = 1 << 21

_log = logging.getLogger(__name__)


def prepare(
    settings: config.DataConfig,
    directory: str | Path,
    *,
    overwrite: bool = False,
    engine: engines.Engine | None = None,
    scorer: Scorer | None = None,
) -> shards.Manifest:
    """Turns the sources into tokenised shards in `directory`, unless they are there already.

    A killed run continues after the last shard that it finished.

    With cleaning steps, the shards hold what the steps leave of the sources' documents;
    `cleaning.pipeline` describes where the cleaned and the rejected documents are.

    Documents go to the validation split by a hash of their text alone: neither their order nor the
    other documents matter, and copies of a text are always on the same side. Malformed documents
    are counted, and kept in `rejected.jsonl` with file, position and reason.

    Args:
        settings: sources, tokenizer and limits.
        directory: folder of the data; created if necessary.
        overwrite: whether to replace data from another config or other input files.
        engine: where to clean text; None for this process.
        scorer: computes the perplexities of texts, for cleaning by perplexity.

    Returns:
        The manifest of the directory.

    Raises:
        FileNotFoundError: a source has no files.
        ValueError: there are no sources, too much of one is malformed, a split is empty, the
            tokenizer cannot be trained, or the directory holds other data.
    """
    if not settings.sources:
        raise ValueError("DataConfig.sources is empty: name at least one Source to read.")
    directory = Path(directory)
    inputs = {
        source.name: directories.find_inputs(source, directory) for source in settings.sources
    }
    scored = "perplexity" in settings.cleaning.names
    others = (perplexity.fingerprint(scorer),) if scored else ()
    fingerprint = directories.fingerprint(settings, inputs, *others)
    build = functools.partial(_build, settings, inputs, fingerprint, directory, engine, scorer)
    return directories.make(directory, settings, fingerprint, build, overwrite=overwrite)


def split_of(text: bytes, validation_share: float) -> shards.SplitName:
    """The side of the split of a document with this UTF-8 text, independent of the others."""
    return "validation" if splits.draw(text) < validation_share * 2**64 else "train"


def _build(
    settings: config.DataConfig,
    inputs: directories.Inputs,
    fingerprint: str,
    directory: Path,
    engine: engines.Engine | None,
    scorer: Scorer | None,
    partial: Path,
) -> shards.Manifest:
    """Writes tokenizer and shards to `partial`, and rejected documents to `directory`."""
    given, rejected = settings, {}
    if settings.cleaning.steps:
        counts = pipeline.clean_sources(settings, inputs, directory, engine, scorer)
        rejected = {name: found.reasons for name, found in counts.items()}
        settings, inputs = pipeline.cleaned(settings, directory)
    else:
        pipeline.remove(directory)  # of an earlier run
    size = sum(file.size for files in inputs.values() for file in files)
    done = []
    aside = rejects.Rejects(directory / rejects.REJECTED_FILE, settings)
    with aside, directories.progress() as bar:
        task = bar.add_task("Training the tokenizer", total=None)
        encoder = _tokenizer(settings, inputs, partial)
        bar.reset(task, description="Writing shards", total=size)
        for source in settings.sources:
            items = _items(source, inputs[source.name], lambda read: bar.update(task, advance=read))
            texts = aside.keep_aside(source.name, items)
            written = _write(settings, source, texts, encoder, partial)
            turned_away = rejected.get(source.name) or aside.counts(source.name)
            done.append(dataclasses.replace(written, rejected=turned_away))
            _log.info("%s", done[-1])
    manifest = directories.manifest(given, fingerprint, encoder, done)
    _check_splits(manifest, settings)
    return manifest


def _tokenizer(
    settings: config.DataConfig, inputs: directories.Inputs, partial: Path
) -> tokenizer.Tokenizer:
    """Trains the tokenizer, or loads the one that a killed run trained."""
    if (partial / tokenizer.META_FILE).is_file():  # which is written last
        with contextlib.suppress(ValueError):  # it was being written
            return tokenizer.load_tokenizer(partial)
    encoder = tokenizer.train(settings.tokenizer, _sample(settings, inputs))
    encoder.save(partial)
    return encoder


def _write(
    settings: config.DataConfig,
    source: config.Source,
    texts: Iterator[str],
    encoder: tokenizer.Tokenizer,
    partial: Path,
) -> shards.SourceManifest:
    """Encodes one source's documents into its shards."""
    dtype = shards.token_dtype(encoder.vocab_size)
    progress = partial / directories.PROGRESS_FOLDER
    writers = {
        split: shards.Writer(partial, source.name, split, settings.shard_tokens, progress)
        for split in shards.SPLITS
    }
    num_threads = len(os.sched_getaffinity(0))
    done = {split: writer.done.documents for split, writer in writers.items()}
    for lot in _lots(_after(texts, done, settings.validation_share)):
        for text, ids in zip(lot, encoder.encode_batch(lot, num_threads), strict=True):
            data = text.encode()
            tokens = np.array([*encoder.opening, *ids, encoder.eos_id], dtype)
            writers[split_of(data, settings.validation_share)].write(
                tokens.tobytes(), len(tokens), len(data)
            )
    return shards.SourceManifest(
        name=source.name,
        weight=source.weight,
        train=writers["train"].close(),
        validation=writers["validation"].close(),
    )


def _items(
    source: config.Source, files: Sequence[documents.File], advance: documents.Advance
) -> Iterator[str | documents.Rejected]:
    for file in files:
        for item in documents.read(file, source, advance):
            yield item if isinstance(item, documents.Rejected) else item.text


def _after(
    texts: Iterator[str], done: dict[shards.SplitName, int], validation_share: float
) -> Iterator[str]:
    """The texts without the first ones of each split, as many as are done."""
    while any(done.values()) and (text := next(texts, None)) is not None:
        split = split_of(text.encode(), validation_share)
        if done[split]:
            done[split] -= 1
        else:
            yield text
    yield from texts


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


def _sample(settings: config.DataConfig, inputs: directories.Inputs) -> Iterator[str]:
    """Training text for the tokenizer: the beginning of every file, without held-out documents.

    Every source provides the same share of `sample_bytes`, and so does every file of a source, at
    least 64 KiB. The order is shuffled, so that file names do not matter.
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
                data = item.text.encode()
                if split_of(data, settings.validation_share) == "train":
                    yield item.text
                    taken += len(data)
                if taken >= share:
                    break
            budget -= taken
            if budget <= 0:
                break


def _check_splits(manifest: shards.Manifest, settings: config.DataConfig) -> None:
    for source in manifest.sources:
        if source.weight > 0 and not source.train.documents:
            why = "; ".join(f"{count} × {reason}" for reason, count in source.rejected.items())
            raise ValueError(
                f"source {source.name!r} has no training documents: "
                f"{source.validation.documents} are held out, and {sum(source.rejected.values())} "
                f"were rejected ({why or 'none'}). Give it more text, lower validation_share, or "
                "reject less."
            )
    total = manifest.split("train").documents
    if settings.validation_share > 0 and not manifest.split("validation").documents:
        enough = min(0.5, 5 / max(total, 1))
        raise ValueError(
            f"none of {total} documents fell into the validation split. Cut the text into more "
            "documents (split=paragraph, or a smaller document_bytes of the source), raise "
            f"validation_share (now {settings.validation_share}; {enough:.2g} would hold out about "
            f"{enough * total:.1g}), or set it to 0 to do without."
        )
