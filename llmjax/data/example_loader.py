"""Batches of examples to fine-tune on, out of what `prepare_examples` left.

Order, shares, seeds, epochs and saved places are those of `loader`. Sets of examples are small
beside corpora, so here every process cuts the whole stream into rows, endless ones too, and keeps
its own of every batch: examples wait in few open rows, and one epoch hardly mixes with the next.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import grain
import numpy as np

from llmjax.data import config, loader, shards, streams
from llmjax.data import packing as pack_lib
from llmjax.data.tokenized import Tokenized, unsigned

Prompts = dict[str, list]


def example_batches(
    directory: str | Path,
    kind: config.Kind,
    *,
    split: shards.SplitName,
    batch_size: int,
    sequence_length: int,
    packing: Literal["best_fit", "none"] | None = None,
    seed: int = 0,
    weights: Mapping[str, float] | None = None,
    epochs: int | None = None,
    process_index: int = 0,
    process_count: int = 1,
    prefetch: int = 4,
) -> grain.IterDataset[pack_lib.Batch]:
    """Streams batches of rows of the examples that `prepare_examples` left in a directory.

    Args:
        directory: where the prepared examples lie.
        kind: which the caller trains on: "sft", "classification", "comparison" or "judged".
        split: "train", without end unless `epochs` says how many; or "validation", one pass in a
            fixed order, whose last batch is filled up with padding.
        batch_size: rows [B] of the global batch; each process yields B / process_count of them.
        sequence_length: positions [S] of a row; an example is never cut, so it must have room.
        packing: "best_fit" packs several examples of `sft` into a row, isolated from each other;
            "none" gives each a row. By default the first for `sft`, the other kinds need the other.
        seed: as in `loader.batches`, and so are the rest.
        weights: the sources' shares of the training tokens.
        epochs: passes over the training examples.
        process_index: this process's number.
        process_count: of those that share the batches.
        prefetch: batches made ready ahead of time.

    Returns:
        An iterable of batches with int32 [B, S] `tokens`, `targets` (the next token where it is
        trained, else -1), `segment_ids` (0: padding) and `positions`; its iterators have
        `get_state()` and `set_state(state)` as those of `loader.batches`. A comparison is a row:
        its answers, each with the prompt in front, are segments 1 to K, the best first, and
        float32 [B] `margin` says by how much the better of two is better. Classification has
        int32 [B] `labels`, and so have judged answers: 1 if good, 0 if bad. -1 is padding.

    Raises:
        FileNotFoundError: the directory holds no prepared data.
        ValueError: it holds none of this kind, an example is longer than a row, or an argument is
            out of range.
    """
    if kind == "prompt":
        raise ValueError("prompts make no rows: read them with `prompt_batches`.")
    packing = packing or ("best_fit" if kind == "sft" else "none")
    if packing not in (("best_fit", "none") if kind == "sft" else ("none",)):
        raise ValueError(
            f"packing is {packing!r} for examples of kind {kind!r}: use 'none', or 'best_fit' for "
            "kind 'sft'."
        )
    loader.check_arguments(split, batch_size, sequence_length, seed, epochs, prefetch)
    own = loader.own_rows(batch_size, process_index, process_count)
    reader = _reader(directory, split, kind)
    about = reader.manifest.examples
    if about is not None and about.longest > sequence_length:
        raise ValueError(
            f"sequence_length is {sequence_length}, but the longest example has {about.longest} "
            "tokens. Use longer rows, or prepare with a smaller ExampleConfig.max_length."
        )
    examples = reader.stream(seed, weights, epochs)
    if packing == "best_fit":
        pairs = examples.map(_with_targets).to_iter_dataset(loader.IN_THIS_THREAD)
        rows = pack_lib.pack(pairs, sequence_length, "best_fit")
    else:
        unpacked = examples.map(_Row(kind, sequence_length))
        rows = unpacked.to_iter_dataset(loader.IN_THIS_THREAD)
    ready = loader.batched(rows, batch_size, own)
    return streams.Prefetch(ready, prefetch_buffer_size=prefetch)


def prompt_batches(
    directory: str | Path,
    *,
    split: shards.SplitName,
    batch_size: int,
    seed: int = 0,
    weights: Mapping[str, float] | None = None,
    epochs: int | None = None,
    process_index: int = 0,
    process_count: int = 1,
    prefetch: int = 4,
) -> grain.IterDataset[Prompts]:
    """Streams batches of prompts for rollouts; arguments as in `example_batches`.

    Returns:
        An iterable of batches: `tokens`, a list of B int32 arrays [S_i], each up to where the
        answer begins; and `fields`, a list of B dicts of what else the records had, an `answer`
        say. Where a last batch is too short, its last prompt is repeated with None for its fields.
        Its iterators have `get_state()` and `set_state(state)`.

    Raises:
        FileNotFoundError: the directory holds no prepared data.
        ValueError: it holds no prompts, or an argument is out of range.
    """
    loader.check_arguments(split, batch_size, 1, seed, epochs, prefetch)
    own = loader.own_rows(batch_size, process_index, process_count)
    examples = _reader(directory, split, "prompt").stream(seed, weights, epochs)
    rows = examples.to_iter_dataset(loader.IN_THIS_THREAD)
    ready = loader.batched(rows, batch_size, own, _stack_prompts)
    return streams.Prefetch(ready, prefetch_buffer_size=prefetch)


def _reader(directory: str | Path, split: shards.SplitName, kind: str) -> loader.Reader:
    reader = loader.Reader(directory, split, Tokenized.from_bytes)
    about = reader.manifest.examples
    if about is None or about.kind != kind:
        found = "documents" if about is None else f"examples of kind {about.kind!r}"
        raise ValueError(
            f"{str(directory)!r} holds {found}, not examples of kind {kind!r}. Prepare these with "
            "`prepare_examples`."
        )
    return reader


def _segment(sequence: np.ndarray) -> pack_lib.Batch:
    """A sequence [S] as tokens [S] and targets [S]: what follows, where that is trained."""
    tokens, trained = unsigned(sequence)
    targets = np.full(len(tokens), pack_lib.NO_TARGET, np.int32)
    targets[:-1] = np.where(trained[1:], tokens[1:], pack_lib.NO_TARGET)
    return {"tokens": tokens, "targets": targets}


def _with_targets(example: Tokenized) -> pack_lib.Batch:
    return _segment(example.sequences[0])


class _Row:
    """Makes a padded row of an example, its sequences one behind the other."""

    def __init__(self, kind: config.Kind, length: int) -> None:
        self._kind, self._length = kind, length

    def __call__(self, example: Tokenized) -> pack_lib.Batch:
        segments = [_segment(sequence) for sequence in example.sequences]
        row = {name: np.concatenate([s[name] for s in segments]) for name in segments[0]}
        sizes = [len(sequence) for sequence in example.sequences]
        row["segment_ids"] = np.repeat(np.arange(1, len(sizes) + 1), sizes)
        row["positions"] = np.concatenate([np.arange(size) for size in sizes])
        row = pack_lib.pad(row, self._length - sum(sizes))
        if self._kind == "comparison":
            row["margin"] = np.array(example.margin, np.float32)
        if self._kind in ("classification", "judged"):
            row["labels"] = np.array(example.label, np.int32)
        return row


def _stack_prompts(examples: Sequence[Tokenized], batch_size: int) -> Prompts:
    tokens = [unsigned(example.sequences[0])[0] for example in examples]
    fields: list[Any] = [dict(example.extra) for example in examples]
    missing = batch_size - len(examples)
    return {"tokens": tokens + tokens[-1:] * missing, "fields": fields + [None] * missing}
