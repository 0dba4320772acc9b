"""The prepared corpus as rows for a model."""

import dataclasses
import pathlib
from collections.abc import Iterator

import numpy as np

from tools.encoders.corpus import SPLITS, Split

Rows = dict[str, np.ndarray]


@dataclasses.dataclass(frozen=True)
class Data:
    """The file that `corpus.prepare` writes.

    Attributes:
        tokens: uint16, the concatenated pretraining documents.
        offsets: their starts and the end [N + 1].
        labelled_tokens: uint16, the concatenated labelled documents.
        labelled_offsets: their starts and the end [M + 1].
        labels: [M], indices of topics.
        splits: [M], indices of `SPLITS`.
        topics: names of the labels.
        vocab_size: V.
        mask_id: the mask token.
        special_ids: tokens that are never masked.
    """

    tokens: np.ndarray
    offsets: np.ndarray
    labelled_tokens: np.ndarray
    labelled_offsets: np.ndarray
    labels: np.ndarray
    splits: np.ndarray
    topics: tuple[str, ...]
    vocab_size: int
    mask_id: int
    special_ids: tuple[int, ...]

    @classmethod
    def load(cls, path: str | pathlib.Path) -> "Data":
        """Reads the file.

        Raises:
            ValueError: the file lacks arrays.
        """
        with np.load(path) as file:
            arrays = dict(file)
        missing = sorted({field.name for field in dataclasses.fields(cls)} - set(arrays))
        if missing:
            raise ValueError(f"{str(path)!r} lacks {', '.join(missing)}: prepare it again")
        arrays["topics"] = tuple(arrays["topics"].tolist())
        arrays["special_ids"] = tuple(arrays["special_ids"].tolist())
        for name in ("vocab_size", "mask_id"):
            arrays[name] = int(arrays[name])
        return cls(**arrays)

    def batches(self, seed: int, batch_size: int, length: int) -> Iterator[Rows]:
        """An infinite stream of full rows [B, S] of packed documents, reshuffled every epoch.

        A document cut at a row's end continues in the next row as a separate segment. Positions
        start at 0 in each segment, as in the rows of labelled documents.

        Raises:
            ValueError: there is less text than one batch needs.
        """
        size = batch_size * length
        if len(self.tokens) < size:
            raise ValueError(f"{len(self.tokens)} tokens of text are less than a batch of {size}")
        draws = np.random.default_rng(seed)
        lengths: np.ndarray = np.diff(np.asarray(self.offsets, np.int64))
        tokens, owners = np.zeros(0, np.int32), np.zeros(0, np.int32)
        while True:
            order = draws.permutation(len(lengths))
            tokens = np.append(tokens, self.tokens[_ranges(self.offsets[order], lengths[order])])
            owners = np.append(owners, np.repeat(order, lengths[order]))
            count = len(tokens) // size
            for start in range(0, count * size, size):
                part = slice(start, start + size)
                yield _packed(*(a[part].reshape(-1, length) for a in (tokens, owners)))
            tokens, owners = tokens[count * size :], owners[count * size :]

    def labelled(self, split: Split, length: int) -> Rows:
        """The documents of a split, one per row [N, S], truncated or padded, and "labels" [N]."""
        chosen = np.flatnonzero(self.splits == SPLITS.index(split))
        tokens = np.zeros((len(chosen), length), np.int32)
        segment_ids = np.zeros_like(tokens)
        for row, document in enumerate(chosen):
            start, stop = self.labelled_offsets[document : document + 2].astype(np.int64)
            ids = self.labelled_tokens[start : min(stop, start + length)]
            tokens[row, : len(ids)] = ids
            segment_ids[row, : len(ids)] = 1
        labels = self.labels[chosen].astype(np.int32)
        return {"tokens": tokens, "segment_ids": segment_ids, "labels": labels}

    def counts(self, split: Split, length: int) -> np.ndarray:
        """How often each token occurs in each document's row, float32 [N, V]."""
        rows = self.labelled(split, length)
        counts = np.zeros((len(rows["labels"]), self.vocab_size), np.float32)
        documents, places = np.nonzero(rows["segment_ids"])
        np.add.at(counts, (documents, rows["tokens"][documents, places]), 1)
        return counts


def _ranges(starts: np.ndarray, lengths: np.ndarray) -> np.ndarray:
    """The concatenated ranges start, start + 1, … of the given lengths."""
    shift = starts.astype(np.int64) - np.append(0, np.cumsum(lengths)[:-1])
    return np.arange(lengths.sum()) + np.repeat(shift, lengths)


def _packed(tokens: np.ndarray, owners: np.ndarray) -> Rows:
    """Rows with segments 1, 2, … where the owner changes, and positions within them."""
    new = np.ones_like(owners, bool)
    new[:, 1:] = owners[:, 1:] != owners[:, :-1]
    places = np.arange(tokens.shape[1])
    begins = np.maximum.accumulate(np.where(new, places, 0), axis=1)
    return {
        "tokens": tokens.astype(np.int32),
        "segment_ids": np.cumsum(new, axis=1, dtype=np.int32),
        "positions": (places - begins).astype(np.int32),
    }
