"""The packing law: rows reassemble into the documents, and targets are the tokens that follow."""

import collections

import grain
import hypothesis
import numpy as np
import pytest
from hypothesis import strategies

from llmjax.data import packing

# Documents as the shards have them: bos, at least nothing, eos.
DOCUMENTS = strategies.lists(
    strategies.lists(strategies.integers(4, 99), max_size=40).map(
        lambda ids: np.array([1, *ids, 2], np.int32)
    ),
    min_size=1,
    max_size=12,
)


def pack(documents: list[np.ndarray], length: int, kind: packing.Packing) -> list[packing.Batch]:
    examples = grain.MapDataset.source(documents).map(packing.with_targets).to_iter_dataset()
    return list(packing.pack(examples, length, kind))


def segments(row: packing.Batch) -> list[packing.Batch]:
    """A row's segments, found by a slow loop over its positions."""
    found: dict[int, list[int]] = collections.defaultdict(list)
    for position, segment in enumerate(row["segment_ids"]):
        if segment:
            found[int(segment)].append(position)
    assert sorted(found) == list(range(1, len(found) + 1))
    pieces = []
    for places in found.values():
        assert places == list(range(places[0], places[-1] + 1))
        pieces.append({name: array[places] for name, array in row.items()})
    return pieces


@pytest.mark.parametrize("kind", ["concat", "best_fit"])
@hypothesis.given(documents=DOCUMENTS, length=strategies.integers(1, 24))
def test_rows_reassemble_into_documents(
    kind: packing.Packing, documents: list[np.ndarray], length: int
) -> None:
    rows = pack(documents, length, kind)
    pieces = [piece for row in rows for piece in segments(row)]
    for row in rows:
        assert {array.shape for array in row.values()} == {(length,)}
        assert {array.dtype for array in row.values()} == {np.dtype(np.int32)}
        empty = row["segment_ids"] == 0
        assert (row["targets"][empty] == packing.NO_TARGET).all()
        assert (row["tokens"][empty] == 0).all()
    for piece in pieces:
        assert piece["positions"].tolist() == list(range(len(piece["tokens"])))
    # (token, its target) everywhere: what a document says, wherever it was cut.
    wanted = [
        list(zip(document.tolist(), [*document[1:].tolist(), -1], strict=True))
        for document in documents
    ]
    found = [
        list(zip(piece["tokens"].tolist(), piece["targets"].tolist(), strict=True))
        for piece in pieces
    ]
    if kind == "concat":
        assert [pair for piece in found for pair in piece] == [p for d in wanted for p in d]
        # No row but the last has room left.
        assert all(row["segment_ids"].all() for row in rows[:-1])
    else:
        cut = [d[i : i + length] for d in wanted for i in range(0, len(d), length)]
        assert sorted(found) == sorted(cut)


def test_short_documents_are_whole_in_best_fit_rows() -> None:
    documents = [np.arange(4, 4 + n, dtype=np.int32) for n in (5, 3, 6, 2, 8, 7, 1)]
    rows = pack(documents, 8, "best_fit")
    assert sorted(len(p["tokens"]) for row in rows for p in segments(row)) == [1, 2, 3, 5, 6, 7, 8]
    assert len(rows) == 4  # 32 tokens in 4 rows of 8: nothing wasted


def test_batches_are_filled_up_with_padding() -> None:
    row = pack([np.array([1, 5, 6, 2], np.int32)], 6, "concat")[0]
    batch = packing.stack([row], batch_size=3)
    assert all(array.shape == (3, 6) and array.dtype == np.int32 for array in batch.values())
    assert batch["targets"].tolist() == [[5, 6, 2, -1, -1, -1], [-1] * 6, [-1] * 6]
    assert batch["segment_ids"].tolist() == [[1, 1, 1, 1, 0, 0], [0] * 6, [0] * 6]
    assert not batch["tokens"][1:].any()


def test_a_short_window_is_padded() -> None:
    row = packing.window(np.array([7, 8, 9], np.uint16), 4)
    assert {name: array.tolist() for name, array in row.items()} == {
        "tokens": [7, 8, 0, 0],
        "targets": [8, 9, -1, -1],
        "segment_ids": [1, 1, 0, 0],
        "positions": [0, 1, 0, 0],
    }
    assert {array.dtype for array in row.values()} == {np.dtype(np.int32)}
