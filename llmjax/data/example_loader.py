"""Batches of fine-tuning examples from the output of `prepare_examples`.

Order, shares, seeds, epochs and saved positions work as in `loader`. Example sets are small
compared with corpora, so every process packs the whole stream into rows, even an endless one, and
keeps its own rows of every batch. Examples therefore wait in few open rows, and epochs hardly mix.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import grain
import numpy as np

from llmjax.data import config, loader, shards, streams
from llmjax.data import packing as pack_lib
from llmjax.data.tokenized import Tokenized, unsigned

Prompts = dict[str, list]

# How many of the next examples to search for one with another prompt.
_LOOK_AHEAD = 32


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
        directory: folder of the prepared examples.
        kind: which the caller trains on: "sft", "classification", "comparison" or "judged".
        split: "train", which repeats forever unless `epochs` is given; or "validation", one pass in
            a fixed order whose last batch is padded.
        batch_size: rows [B] of the global batch; each process yields B / process_count of them.
        sequence_length: positions [S] of a row; it must hold every example, as none is cut.
        packing: "best_fit" packs several examples of `sft` into a row, isolated from each other;
            "none" gives each example a row. The default is "best_fit" for `sft`; the other kinds
            need "none".
        seed: as for `loader.batches`, like the remaining arguments.
        weights: the sources' shares of the training tokens.
        epochs: passes over the training examples.
        process_index: index of this process.
        process_count: number of processes that share the batches.
        prefetch: number of batches to prepare ahead of time.

    Returns:
        An iterable of batches with int32 [B, S] `tokens`, `targets` (the next token where it is
        trained, else -1), `segment_ids` (0: padding) and `positions`; its iterators have
        `get_state()` and `set_state(state)` like those of `loader.batches`. A comparison is a row:
        its answers, each preceded by the prompt, are segments 1 to K from best to worst; if any
        example has a margin, so does each row, float32 [B] `margin`. Classification adds int32 [B]
        `labels` (-1: padding). Judged answers add labels too, 1 if good and 0 if bad; segment 2 of
        their rows holds the same prompt with the answer to another one, the next in the stream.

    Raises:
        FileNotFoundError: the directory holds no prepared data.
        ValueError: it holds no examples of this kind, an example is longer than a row, or an
            argument is out of range.
    """
    best_fit = _packing(kind, packing) == "best_fit"
    loader.check_arguments(split, batch_size, sequence_length, seed, epochs, prefetch)
    own = loader.own_rows(batch_size, process_index, process_count)
    reader = _Reader(directory, split, kind)
    reader.check_room(sequence_length)
    examples = reader.stream(seed, weights, epochs)
    rows = _rows(examples, reader.about, sequence_length, best_fit)
    ready = loader.batched(rows, batch_size, own)
    return streams.Prefetch(ready, prefetch_buffer_size=prefetch)


def _rows(
    examples: grain.MapDataset[Tokenized], about: shards.Examples, length: int, best_fit: bool
) -> grain.IterDataset[pack_lib.Batch]:
    """Turns examples into rows of a length, several or one in each."""
    if best_fit:
        pairs = examples.map(_with_targets).to_iter_dataset(loader.IN_THIS_THREAD)
        return pack_lib.pack(pairs, length, "best_fit")
    if about.kind == "judged":
        examples = _WithUnrelated(examples, about.longest)
    return examples.map(_Row(about, length)).to_iter_dataset(loader.IN_THIS_THREAD)


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
    """Streams batches of prompts for rollouts; arguments as for `example_batches`.

    Returns:
        An iterable of batches: `tokens`, a list of B int32 arrays [S_i], each up to where the
        answer begins; and `fields`, a list of B dicts with the records' other fields, such as an
        `answer`. A short last batch is filled by repeating its last prompt with None as fields. Its
        iterators have `get_state()` and `set_state(state)`.

    Raises:
        FileNotFoundError: the directory holds no prepared data.
        ValueError: it holds no prompts, or an argument is out of range.
    """
    loader.check_arguments(split, batch_size, 1, seed, epochs, prefetch)
    own = loader.own_rows(batch_size, process_index, process_count)
    examples = _Reader(directory, split, "prompt").stream(seed, weights, epochs)
    rows = examples.to_iter_dataset(loader.IN_THIS_THREAD)
    ready = loader.batched(rows, batch_size, own, _stack_prompts)
    return streams.Prefetch(ready, prefetch_buffer_size=prefetch)


def _packing(kind: config.Kind, packing: str | None) -> str:
    """Validates the packing, or chooses the default of a kind."""
    if kind == "prompt":
        raise ValueError("prompts are not packed into rows: read them with `prompt_batches`.")
    packing = packing or ("best_fit" if kind == "sft" else "none")
    if packing not in (("best_fit", "none") if kind == "sft" else ("none",)):
        raise ValueError(
            f"packing is {packing!r} for examples of kind {kind!r}: use 'none', or 'best_fit' for "
            "kind 'sft'."
        )
    return packing


class _Reader(loader.Reader):
    """A reader of examples of one kind."""

    def __init__(self, directory: str | Path, split: shards.SplitName, kind: str) -> None:
        super().__init__(directory, split, Tokenized.from_bytes)
        about = self.manifest.examples
        if about is None or about.kind != kind:
            found = "documents" if about is None else f"examples of kind {about.kind!r}"
            raise ValueError(
                f"{str(directory)!r} holds {found}, not examples of kind {kind!r}. Prepare these "
                "with `prepare_examples`."
            )
        self.about = about

    def check_room(self, sequence_length: int) -> None:
        """Raises ValueError if a row has no room for the longest example."""
        # The row of a judged answer also holds an answer to another prompt, which may be as long.
        needed = self.about.longest * (2 if self.about.kind == "judged" else 1)
        if needed > sequence_length:
            raise ValueError(
                f"sequence_length is {sequence_length}, but the longest example needs {needed} "
                "tokens. Use longer rows, or prepare with a smaller ExampleConfig.max_length."
            )


class _WithUnrelated(grain.MapDataset[Tokenized]):
    """Judged examples, each with a second sequence: its prompt with the answer to another one.

    The second sequence measures how far the model has moved from the reference in general
    (Ethayarajh et al. 2024, section 4.1, arXiv:2402.01306). Its answer is from the next example
    with another prompt; without one among the next few, there is no second sequence. Its end is cut
    to `longest`.
    """

    def __init__(self, examples: grain.MapDataset, longest: int) -> None:
        super().__init__(examples)
        self._longest = longest

    def __len__(self) -> int:
        return len(self._parent)

    def __getitem__(self, index: Any) -> Any:
        if isinstance(index, slice):
            return self.slice(index)
        example = self._parent[index]
        prompt, _ = _parted(example.sequences[0])
        for later in range(index + 1, index + 1 + _LOOK_AHEAD):
            other, answer = _parted(self._parent[later].sequences[0])
            if not np.array_equal(prompt, other):
                unrelated = np.concatenate([prompt, answer])[: self._longest]
                return dataclasses.replace(example, sequences=(*example.sequences, unrelated))
        return example


def _parted(sequence: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Splits a sequence at its first trained token."""
    start = int(np.argmax(sequence >= 0))
    return sequence[:start], sequence[start:]


def _segment(sequence: np.ndarray) -> pack_lib.Batch:
    """A sequence [S] as tokens [S] and targets [S], the next token where it is trained."""
    tokens, trained = unsigned(sequence)
    targets = np.full(len(tokens), pack_lib.NO_TARGET, np.int32)
    targets[:-1] = np.where(trained[1:], tokens[1:], pack_lib.NO_TARGET)
    return {"tokens": tokens, "targets": targets}


def _with_targets(example: Tokenized) -> pack_lib.Batch:
    return _segment(example.sequences[0])


class _Row:
    """Makes a padded row of an example by concatenating its sequences."""

    def __init__(self, about: shards.Examples, length: int) -> None:
        self._about, self._length = about, length

    def __call__(self, example: Tokenized) -> pack_lib.Batch:
        segments = [_segment(sequence) for sequence in example.sequences]
        row = {name: np.concatenate([s[name] for s in segments]) for name in segments[0]}
        sizes = [len(sequence) for sequence in example.sequences]
        row["segment_ids"] = np.repeat(np.arange(1, len(sizes) + 1), sizes)
        row["positions"] = np.concatenate([np.arange(size) for size in sizes])
        row = pack_lib.pad(row, self._length - sum(sizes))
        if self._about.margins:
            row["margin"] = np.array(example.margin, np.float32)
        if self._about.kind in ("classification", "judged"):
            row["labels"] = np.array(example.label, np.int32)
        return row


def _stack_prompts(examples: Sequence[Tokenized], batch_size: int) -> Prompts:
    tokens = [unsigned(example.sequences[0])[0] for example in examples]
    fields: list[Any] = [dict(example.extra) for example in examples]
    missing = batch_size - len(examples)
    return {"tokens": tokens + tokens[-1:] * missing, "fields": fields + [None] * missing}
