"""Streams batches from prepared data: mixes, shuffles, shards, packs, batches and prefetches.

Training documents are reshuffled every epoch, by seed. With several sources, each provides its
weight's share of the tokens and repeats when it runs out. Validation is one pass over all sources
in a fixed order, ignoring weights, with each document exactly once.

The global batch of a step is the same for any number of processes, so a run can resume with a
different number. An endless stream consists of up to 64 streams (as many as divide the batch size).
Each of them has every n-th document and provides the same rows of every batch, and a process reads
only the streams of its rows. A finite stream, like windows, is packed into rows by every process,
which keeps its own rows of every batch; the last batch is padded and nothing is dropped.
"""

import functools
import hashlib
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import grain
import numpy as np
from array_record.python import array_record_module

from llmjax.data import packing as pack_lib
from llmjax.data import shards, streams

# Maximum number of streams in an endless stream; more processes than that share streams.
_STREAMS = 64
# Reading a document takes microseconds, less than a hand-over between threads; whole batches are
# prefetched instead.
IN_THIS_THREAD = grain.ReadOptions(num_threads=0, prefetch_buffer_size=0)


def batches(
    directory: str | Path,
    *,
    split: shards.SplitName,
    batch_size: int,
    sequence_length: int,
    seed: int = 0,
    weights: Mapping[str, float] | None = None,
    epochs: int | None = None,
    packing: pack_lib.Packing = "concat",
    process_index: int = 0,
    process_count: int = 1,
    prefetch: int = 4,
) -> grain.IterDataset[pack_lib.Batch]:
    """Streams batches of a split of the data that `prepare` left in a directory.

    Args:
        directory: folder of the prepared data.
        split: "train" or "validation".
        batch_size: rows [B] of the global batch; each process yields B / process_count of them.
        sequence_length: positions [S] of a row.
        seed: random seed of the shuffle, 0 or more.
        weights: the sources' shares of the training tokens by name, instead of `Source.weight`; a
            source without a weight, or with 0, is left out.
        epochs: passes over the training documents; None for no end. With several sources, the
            stream ends when the first of them has been read this often.
        packing: "concat" fills rows and splits documents at row ends; "best_fit" splits only
            documents longer than a row, and pads; "windows" draws random windows from all documents
            concatenated (nanoGPT's loader; endless, holds the whole split in memory, and takes
            sources in proportion to their size).
        process_index: index of this process among those that share the batches.
        process_count: number of processes that share them.
        prefetch: number of batches that a thread prepares ahead of time; 0 for none.

    Returns:
        An iterable of batches: int32 [B, S] `tokens`, `targets` (-1: none), `segment_ids`
        (0: padding) and `positions`. Its iterators have `get_state()`, which returns a dictionary
        fit for JSON, and `set_state(state)`, which resumes exactly there. A different number of
        processes resumes from {"processes": [the states of all]}.

    Raises:
        FileNotFoundError: the directory holds no prepared data.
        ValueError: an argument is out of range, or the split holds no documents.
    """
    if packing not in ("concat", "best_fit", "windows"):
        raise ValueError(f"packing is {packing!r}: use 'concat', 'best_fit' or 'windows'.")
    check_arguments(split, batch_size, sequence_length, seed, epochs, prefetch)
    own = own_rows(batch_size, process_index, process_count)
    reader = Reader(directory, split)
    if packing == "windows":
        rows = _windows(reader, split, sequence_length, seed, weights, epochs)
    else:
        documents = reader.stream(seed, weights, epochs)
        if split == "train" and epochs is None:
            endless = _endless(documents, batch_size, own, sequence_length, packing, seed)
            return streams.Prefetch(endless, prefetch_buffer_size=prefetch)
        rows = _packed(documents, sequence_length, packing)
    return streams.Prefetch(batched(rows, batch_size, own), prefetch_buffer_size=prefetch)


def _endless(
    documents: grain.MapDataset[np.ndarray],
    batch_size: int,
    own: range,
    sequence_length: int,
    packing: pack_lib.Packing,
    seed: int,
) -> grain.IterDataset[pack_lib.Batch]:
    """The rows `own` of every batch, from the streams that provide them."""
    count = max(n for n in range(1, _STREAMS + 1) if batch_size % n == 0)
    each = batch_size // count
    first, last = own.start // each, (own.stop - 1) // each
    parts = []
    for i in range(first, last + 1):
        dealt = streams.Dealt(documents, i, count, _seed(seed, "streams"))
        rows = _packed(dealt, sequence_length, packing, stream=i)
        parts.append(batched(rows, each, range(each)))
    together = streams.Together(parts, first)
    if len(parts) * each == len(own):
        return together
    skipped = own.start - first * each
    return together.map(functools.partial(_rows, part=slice(skipped, skipped + len(own))))


def _packed(
    documents: grain.MapDataset[np.ndarray],
    sequence_length: int,
    packing: pack_lib.Packing,
    stream: int = 0,
) -> grain.IterDataset[pack_lib.Batch]:
    examples = documents.map(pack_lib.with_targets).to_iter_dataset(IN_THIS_THREAD)
    return pack_lib.pack(examples, sequence_length, packing, stream)


def batched(
    rows: grain.IterDataset,
    batch_size: int,
    own: range,
    stack: Callable[..., Any] = pack_lib.stack,
) -> grain.IterDataset:
    """Batches of rows, reduced to the rows `own`; `stack` makes a batch of up to `batch_size`."""
    whole = rows.batch(batch_size, batch_fn=functools.partial(stack, batch_size=batch_size))
    if len(own) == batch_size:
        return whole
    return whole.map(functools.partial(_rows, part=slice(own.start, own.stop)))


def _rows(batch: pack_lib.Batch, part: slice) -> pack_lib.Batch:
    return {name: values[part] for name, values in batch.items()}


class Reader:
    """The documents or examples of one split, source by source, as grain datasets.

    Args:
        directory: folder of the prepared data.
        split: "train" or "validation".
        decode: decodes a record; by default a document to int32 tokens [S].

    Raises:
        FileNotFoundError: the directory holds no prepared data.
        ValueError: the split is empty, or it holds examples instead of documents.
    """

    def __init__(
        self,
        directory: str | Path,
        split: shards.SplitName,
        decode: Callable[[bytes], Any] | None = None,
    ) -> None:
        self._directory = Path(directory)
        self._split: shards.SplitName = split
        self.manifest = shards.load_manifest(directory)
        self._dtype = dtype = np.dtype(self.manifest.dtype)
        about = self.manifest.examples
        if decode is None and about is not None:
            raise ValueError(
                f"{str(directory)!r} holds examples of kind {about.kind!r}, not documents: read "
                "them with `example_batches`, or `prompt_batches`."
            )
        self._decode = decode or (lambda record: np.frombuffer(record, dtype).astype(np.int32))
        if not self.manifest.split(split).documents:
            raise ValueError(
                f"the {split} split in {str(directory)!r} holds no documents. Prepare the data "
                "with another validation_share."
            )

    def stream(
        self, seed: int, weights: Mapping[str, float] | None, epochs: int | None
    ) -> grain.MapDataset[np.ndarray]:
        """Training documents mixed and shuffled, or validation documents in sequence."""
        if self._split == "validation":
            sources = [s for s in self.manifest.sources if s.validation.documents]
            return grain.MapDataset.concatenate([self._documents(source) for source in sources])
        chosen = self._weights(weights)
        mixed, proportions = [], []
        for source in self.manifest.sources:
            if source.name in chosen:
                documents = self._documents(source).shuffle(seed=_seed(seed, source.name))
                mixed.append(documents.repeat(epochs))
                part = source.split(self._split)
                proportions.append(chosen[source.name] * part.documents / part.tokens)
        return grain.MapDataset.mix(mixed, proportions) if len(mixed) > 1 else mixed[0]

    def flat(self) -> np.ndarray:
        """All documents concatenated into one array [N], in their type on disk.

        Training documents of sources with weight 0 are left out.

        Raises:
            ValueError: other weights differ, which only a choice of documents can respect.
        """
        parts = []
        for source in self._alike():
            for path in self._paths(source.split(self._split)):
                reader = array_record_module.ArrayRecordReader(path)
                parts.append(np.frombuffer(b"".join(reader.read_all()), self._dtype))
                reader.close()
        return np.concatenate(parts)

    def _alike(self) -> list[shards.SourceManifest]:
        """The sources of which all text counts the same."""
        if self._split == "validation":
            return list(self.manifest.sources)
        chosen = self._weights(None)
        if len(set(chosen.values())) > 1:
            raise ValueError(
                f"packing='windows' draws from all text alike, but the sources' weights are "
                f"{chosen}: make them equal (0 leaves a source out), or use packing='concat'."
            )
        return [source for source in self.manifest.sources if source.name in chosen]

    def _documents(self, source: shards.SourceManifest) -> grain.MapDataset[np.ndarray]:
        records = grain.sources.ArrayRecordDataSource(self._paths(source.split(self._split)))
        return grain.MapDataset.source(records).map(self._decode)

    def _paths(self, split: shards.Split) -> list[str]:
        return [str(self._directory / shard.file) for shard in split.shards]

    def _weights(self, weights: Mapping[str, float] | None) -> dict[str, float]:
        """The sources to draw from, with their positive shares of the tokens."""
        known = {source.name: source for source in self.manifest.sources}
        if weights is None:
            weights = {name: source.weight for name, source in known.items()}
        for name, weight in weights.items():
            if name not in known:
                raise ValueError(f"weights names {name!r}, but the sources are {sorted(known)}.")
            if not 0 <= weight < float("inf"):
                raise ValueError(f"weights gives {name!r} {weight}: use a number, 0 or more.")
            if weight and not known[name].split(self._split).documents:
                raise ValueError(f"weights gives {name!r} {weight}, but it has no documents.")
        chosen = {name: weight for name, weight in weights.items() if weight}
        if not chosen:
            raise ValueError(
                f"every source's weight is 0. Give one of {sorted(known)} a positive weight."
            )
        return chosen


class _RandomWindows:
    """Row i is a window at a position drawn from (seed, i); there is no last row."""

    def __init__(self, tokens: np.ndarray, length: int, seed: int) -> None:
        self._tokens, self._length, self._seed = tokens, length, seed

    def __len__(self) -> int:
        return sys.maxsize

    def __getitem__(self, row: int) -> pack_lib.Batch:
        draw = np.random.default_rng((self._seed, row))
        start = int(draw.integers(len(self._tokens) - self._length))
        return pack_lib.window(self._tokens[start : start + self._length + 1], self._length)


class _EveryWindow:
    """Adjacent windows that cover every token once."""

    def __init__(self, tokens: np.ndarray, length: int) -> None:
        self._tokens, self._length = tokens, length

    def __len__(self) -> int:
        return -(-(len(self._tokens) - 1) // self._length)

    def __getitem__(self, row: int) -> pack_lib.Batch:
        start = row * self._length
        return pack_lib.window(self._tokens[start : start + self._length + 1], self._length)


def _windows(
    reader: Reader,
    split: shards.SplitName,
    length: int,
    seed: int,
    weights: Mapping[str, float] | None,
    epochs: int | None,
) -> grain.IterDataset[pack_lib.Batch]:
    """Rows that ignore document boundaries: random in training, adjacent in validation."""
    if weights is not None or epochs is not None:
        raise ValueError(
            f"packing='windows' draws from the whole stream without end, but weights={weights} "
            f"and epochs={epochs}. Leave both out, or use packing='concat'."
        )
    tokens = reader.flat()
    if len(tokens) <= length:
        raise ValueError(
            f"sequence_length is {length}, but the whole split has only {len(tokens)} tokens. "
            "Use a shorter one, or more text."
        )
    windows = (
        _RandomWindows(tokens, length, seed) if split == "train" else _EveryWindow(tokens, length)
    )
    return grain.MapDataset.source(windows).to_iter_dataset(IN_THIS_THREAD)


def _seed(seed: int, name: str) -> int:
    """A seed for grain, which adds the epoch; hashed, so that seeds and names lie far apart."""
    digest = hashlib.blake2b(f"{seed} {name}".encode(), digest_size=4).digest()
    return int.from_bytes(digest, "big")


def check_arguments(
    split: str, batch_size: int, sequence_length: int, seed: int, epochs: int | None, prefetch: int
) -> None:
    """Raises ValueError for the argument of a loader that is out of range."""
    if split not in shards.SPLITS:
        raise ValueError(f"split is {split!r}: use one of {shards.SPLITS}.")
    smallest = {"batch_size": 1, "sequence_length": 1, "seed": 0, "epochs": 1, "prefetch": 0}
    given = (batch_size, sequence_length, seed, 1 if epochs is None else epochs, prefetch)
    for (name, least), value in zip(smallest.items(), given, strict=True):
        if value < least:
            raise ValueError(f"{name} is {value}: use {least} or more.")


def own_rows(batch_size: int, process_index: int, process_count: int) -> range:
    """The rows of every batch that a process reads; raises ValueError if they cannot be split."""
    if not 0 <= process_index < process_count:
        raise ValueError(
            f"process_index is {process_index} with process_count {process_count}: use 0 to "
            f"{process_count - 1}."
        )
    if batch_size % process_count:
        raise ValueError(
            f"batch_size is {batch_size}, which {process_count} processes cannot share equally. "
            f"Use a multiple of {process_count}."
        )
    share = batch_size // process_count
    return range(process_index * share, (process_index + 1) * share)
