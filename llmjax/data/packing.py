"""Packs documents into rows of a fixed length, as grain transformations with a savable state.

A document of n tokens has n positions: position i holds token i and must predict token i + 1, and
the last (eos) predicts nothing. Targets are computed before documents are cut, so every token
except a document's first is predicted exactly once, wherever it is cut.
"""

from collections.abc import Mapping, Sequence
from typing import Literal

import grain
import grain.experimental
import numpy as np

Batch = dict[str, np.ndarray]
Packing = Literal["concat", "best_fit", "windows"]

NO_TARGET = -1
# Rows that best-fit packing fills in parallel: more rows waste less but delay documents longer.
_OPEN_ROWS = 64


def with_targets(document: np.ndarray) -> Batch:
    """Adds targets [S] to tokens [S]."""
    targets = np.full(len(document), NO_TARGET, np.int32)
    targets[:-1] = document[1:]
    return {"tokens": document, "targets": targets}


def pack(
    examples: grain.IterDataset, sequence_length: int, packing: Packing, stream: int = 0
) -> grain.IterDataset:
    """Packs examples from `with_targets` into rows of `sequence_length`: four int32 [S] each.

    `concat` fills every row: a document that does not fit continues in the next row as a new
    segment, with positions from 0 and no attention to what came before.
    `best_fit` splits only documents longer than a row, and pads
    (Ding et al. 2024, "Fewer Truncations Improve Language Modeling", arXiv:2404.10830). It packs
    many rows at once and then emits them all; the number of rows depends on `stream`, so that
    streams do so at different steps.
    """
    lengths = {"tokens": sequence_length, "targets": sequence_length}
    if packing == "best_fit":
        pieces = grain.experimental.FlatMapIterDataset(examples, _Cut(sequence_length))
        rows = grain.experimental.BestFitPackIterDataset(
            pieces,
            length_struct=lengths,
            num_packing_bins=_OPEN_ROWS + stream % 16,
            shuffle_bins=False,
        )
    else:
        rows = grain.experimental.ConcatThenSplitIterDataset(examples, length_struct=lengths)
    return rows.map(_row)


def window(tokens: np.ndarray, sequence_length: int) -> Batch:
    """Up to S + 1 tokens of the concatenated documents as a row [S], ignoring boundaries."""
    length = len(tokens) - 1
    row = {
        "tokens": tokens[:-1],
        "targets": tokens[1:],
        "segment_ids": np.ones(length, np.int32),
        "positions": np.arange(length, dtype=np.int32),
    }
    return pad(row, sequence_length - length)


def stack(rows: Sequence[Batch], batch_size: int) -> Batch:
    """Stacks rows to a batch [B, S], padded if there are too few."""
    batch = {name: np.stack([row[name] for row in rows]) for name in rows[0]}
    return pad(batch, batch_size - len(rows))


def pad(arrays: Batch, missing: int) -> Batch:
    """Pads the end of the first axis: no target, no label, and 0 elsewhere."""
    padded = {}
    for name, array in arrays.items():
        width = [(0, missing)] + [(0, 0)] * (array.ndim - 1)
        fill = NO_TARGET if name in ("targets", "labels") else 0
        dtype = np.float32 if array.dtype.kind == "f" else np.int32
        padded[name] = np.pad(array.astype(dtype, copy=False), width, constant_values=fill)
    return padded


class _Cut(grain.experimental.FlatMapTransform):
    """Cuts an example into pieces of at most `length`."""

    def __init__(self, length: int) -> None:
        self._length = length
        self.max_fan_out = 1 << 31

    def flat_map(self, element: Batch) -> list[Batch]:
        starts = range(0, len(element["tokens"]), self._length)
        return [{k: v[i : i + self._length] for k, v in element.items()} for i in starts]


def _row(packed: Mapping[str, np.ndarray]) -> Batch:
    segment_ids = packed["tokens_segment_ids"]
    return {
        "tokens": packed["tokens"],
        "targets": np.where(segment_ids > 0, packed["targets"], NO_TARGET),
        "segment_ids": segment_ids,
        "positions": packed["tokens_positions"],
    }
