"""Batches hold every document, by the right shares, in an order that can be taken up again."""

import collections
import dataclasses
import itertools
import json
import pathlib
import shutil
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import pytest
from array_record.python import array_record_module

from llmjax import data
from llmjax.data import loader, packing

SHAPE = {"batch_size": 4, "sequence_length": 32}
PACKINGS = ("concat", "best_fit", "windows")


@pytest.fixture(autouse=True)
def few_open_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    """Best-fit packing of 64 rows at once takes tests a minute, and shows no more."""
    monkeypatch.setattr(packing, "_OPEN_ROWS", 6)


def load(directory: pathlib.Path, **settings: Any) -> Any:
    return data.batches(directory, **{"split": "train", **SHAPE, **settings})


def take(stream: Iterable[packing.Batch], count: int) -> list[packing.Batch]:
    return list(itertools.islice(stream, count))


def flat(batches: Iterable[packing.Batch], name: str = "tokens") -> np.ndarray:
    """One array of all positions that are not padding, row after row."""
    return np.concatenate([batch[name][batch["segment_ids"] > 0] for batch in batches])


def texts(batches: Iterable[packing.Batch]) -> list[str]:
    """The documents that lie in full in rows packed without gaps."""
    stream = flat(batches)
    starts, ends = np.flatnonzero(stream == 1), np.flatnonzero(stream == 2)
    ends = ends[ends > starts[0]]
    return [
        bytes((stream[start + 1 : end] - 4).astype(np.uint8)).decode()
        for start, end in zip(starts, ends, strict=False)
    ]


def texts_of_streams(batches: Iterable[packing.Batch]) -> list[str]:
    """The same where every row of the batch is a stream of its own."""
    listed = list(batches)
    rows = range(len(listed[0]["tokens"]))
    return [
        text
        for row in rows
        for text in texts({k: v[row : row + 1] for k, v in b.items()} for b in listed)
    ]


def train_order(directory: pathlib.Path) -> list[str]:
    """The training texts in the order of the shards, read without the loader."""
    found = []
    for shard in data.load_manifest(directory).split("train").shards:
        reader = array_record_module.ArrayRecordReader(str(directory / shard.file))
        for record in reader.read_all():
            found.append(bytes((np.frombuffer(record, "<u2")[1:-1] - 4).astype(np.uint8)).decode())
        reader.close()
    return found


def assert_equal(left: Iterable[packing.Batch], right: Iterable[packing.Batch]) -> None:
    for one, other in zip(left, right, strict=True):
        for name in ("tokens", "targets", "segment_ids", "positions"):
            np.testing.assert_array_equal(one[name], other[name])


def sides(
    directory: pathlib.Path, corpus: dict[str, list[str]]
) -> tuple[dict[str, list[str]], dict[str, list[str]]]:
    """Training and validation documents by source, from the validation batches."""
    held_out = set(texts(load(directory, split="validation")))
    train = {name: [t for t in all_ if t not in held_out] for name, all_ in corpus.items()}
    return train, {name: [t for t in all_ if t in held_out] for name, all_ in corpus.items()}


def test_validation_counts_every_document_once(
    prepared: pathlib.Path, corpus: dict[str, list[str]]
) -> None:
    manifest = data.load_manifest(prepared)
    split = manifest.split("validation")
    _, validation = sides(prepared, corpus)
    found = texts(load(prepared, split="validation"))
    assert sorted(found) == sorted(itertools.chain(*validation.values()))
    assert len(found) == split.documents > 10
    for kind in ("concat", "best_fit"):
        batches = list(load(prepared, split="validation", packing=kind))
        targets = np.concatenate([batch["targets"].ravel() for batch in batches])
        # Every token but each document's first is predicted once, and their bytes are the text's.
        assert (targets >= 0).sum() == split.tokens - split.documents
        token_bytes = data.load_tokenizer(prepared).token_bytes
        assert token_bytes[targets[targets >= 0]].sum() == split.bytes
        assert all(batch["tokens"].shape == (4, 32) for batch in batches)
        assert all((batch["targets"][batch["segment_ids"] == 0] == -1).all() for batch in batches)
    assert_equal(load(prepared, split="validation"), load(prepared, split="validation", seed=9))


def test_an_epoch_holds_every_document_once(
    prepared: pathlib.Path, corpus: dict[str, list[str]]
) -> None:
    train, _ = sides(prepared, corpus)
    for name, documents in train.items():
        batches = list(load(prepared, weights={name: 1}, epochs=3))
        assert collections.Counter(texts(batches)) == collections.Counter(documents * 3)
        orders = [texts(batches)[i * len(documents) :][: len(documents)] for i in range(3)]
        assert sorted(orders[0]) == sorted(orders[1]) == sorted(orders[2]) == sorted(documents)
        assert orders[0] != orders[1] != orders[2] != orders[0] != documents


def test_the_seed_decides_the_order(prepared: pathlib.Path) -> None:
    for kind in PACKINGS:
        runs = [take(load(prepared, packing=kind, seed=seed), 5) for seed in (0, 0, 1)]
        assert_equal(runs[0], runs[1])
        assert not np.array_equal(flat(runs[0]), flat(runs[2]))
    # grain adds the epoch to its seed: seed 1 must not be seed 0 an epoch later.
    for name in ("short", "long"):
        twice = texts(load(prepared, weights={name: 1}, seed=0, epochs=2))
        assert twice[len(twice) // 2 :] != texts(
            load(prepared, weights={name: 1}, seed=1, epochs=1)
        )


@pytest.mark.parametrize("prefetch", [0, 3])
@pytest.mark.parametrize("kind", PACKINGS)
@pytest.mark.parametrize("split", ["train", "validation"])
def test_taking_up_a_saved_state(
    prepared: pathlib.Path, kind: str, split: str, prefetch: int
) -> None:
    stream = load(prepared, split=split, packing=kind, prefetch=prefetch)
    iterator = iter(stream)
    states, batches = [json.loads(json.dumps(iterator.get_state()))], []
    # Some epochs of `short`, whose documents are few: states fall into rows, documents and epochs.
    for batch in itertools.islice(iterator, 60):
        batches.append(batch)
        states.append(json.loads(json.dumps(iterator.get_state())))
    for i in (0, 1, 2, 3, 7, len(batches) // 2, len(batches) - 1, len(batches)):
        resumed = iter(load(prepared, split=split, packing=kind, prefetch=prefetch))
        if i % 2:  # also in mid-course, not only from a fresh start
            next(resumed)
        resumed.set_state(states[i])
        assert json.loads(json.dumps(resumed.get_state())) == states[i]
        assert_equal(take(resumed, len(batches) - i), batches[i:])
        if split == "validation":
            assert next(resumed, None) is None


ANY_STREAM = (
    {"split": "validation"},
    {"epochs": 1},
    {"packing": "windows"},
    {"packing": "concat"},
    {"packing": "best_fit"},
    {"weights": {"short": 1.0}},
)


def join(parts: Sequence[Sequence[packing.Batch]]) -> list[packing.Batch]:
    """The global batches from those of each process."""
    return [
        {name: np.concatenate([part[name] for part in step]) for name in step[0]}
        for step in zip(*parts, strict=True)
    ]


@pytest.mark.parametrize("settings", ANY_STREAM, ids=str)
def test_a_step_has_the_same_batch_for_any_number_of_processes(
    prepared: pathlib.Path, settings: dict[str, Any]
) -> None:
    """And goes on with it when the number changes: from 2 processes to 1, 2 and 4."""
    whole = take(load(prepared, **settings), 12)
    half = len(whole) // 2
    states = []
    for count in (2, 4):
        streams = [
            iter(load(prepared, process_index=i, process_count=count, **settings))
            for i in range(count)
        ]
        parts = [take(stream, half) for stream in streams]
        assert all(len(batch["tokens"]) == 4 // count for part in parts for batch in part)
        assert_equal(join(parts), whole[:half])
        states = states or [json.loads(json.dumps(stream.get_state())) for stream in streams]
    for count in (1, 2, 4):
        parts = []
        for i in range(count):
            stream = iter(load(prepared, process_index=i, process_count=count, **settings))
            stream.set_state(states[i] if count == 2 else {"processes": states})
            parts.append(take(stream, len(whole) - half))
        assert_equal(join(parts), whole[half:])


def test_a_stream_may_have_several_rows_and_several_readers(
    prepared: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As of a batch of more rows than streams, on more processes than streams."""
    monkeypatch.setattr(loader, "_STREAMS", 3)  # so two streams, of two rows each
    whole = take(load(prepared), 8)
    streams = [iter(load(prepared, process_index=i, process_count=4)) for i in range(4)]
    assert_equal(join([take(stream, 4) for stream in streams]), whole[:4])
    states = [stream.get_state() for stream in streams]
    assert [list(state["streams"]) for state in states] == [["0"], ["0"], ["1"], ["1"]]
    one = iter(load(prepared))
    one.set_state({"processes": states})
    assert_equal(take(one, 4), whole[4:])


def test_a_state_of_other_rows_is_named(prepared: pathlib.Path) -> None:
    state = iter(load(prepared, process_index=1, process_count=2)).get_state()
    with pytest.raises(ValueError, match="that of streams 2, 3, and stream 0 is needed here"):
        iter(load(prepared)).set_state(state)


def test_endless_streams_share_out_the_documents(
    prepared: pathlib.Path, corpus: dict[str, list[str]]
) -> None:
    train, _ = sides(prepared, corpus)
    documents = train["long"]
    shares = []
    for i in range(3):
        stream = load(prepared, weights={"long": 1}, batch_size=3, process_index=i, process_count=3)
        batches = take(stream, 400)
        assert batches[0]["tokens"].shape == (1, 32)
        # This process's part of the first epoch.
        shares.append(texts(batches)[: len(range(i, len(documents), 3))])
    assert sorted(itertools.chain(*shares)) == sorted(documents)


def test_sources_give_their_shares_of_the_tokens(prepared: pathlib.Path) -> None:
    """All together exactly; each process, whose documents are drawn, but for chance."""
    for weights in ({"short": 3, "long": 1}, {"short": 1, "long": 9}):
        sizes = [collections.Counter[str](), collections.Counter[str]()]
        for i, counted in enumerate(sizes):
            stream = load(prepared, weights=weights, process_index=i, process_count=2)
            for text in texts_of_streams(take(stream, 400)):
                counted[text.split()[0]] += len(text.encode()) + 2
        wanted = weights["short"] / sum(weights.values())
        shares = [counted["short"] / counted.total() for counted in (*sizes, sizes[0] + sizes[1])]
        assert shares[2] == pytest.approx(wanted, rel=0.05)
        assert shares[:2] == pytest.approx([wanted, wanted], rel=0.2)


def test_weights_come_from_the_sources_unless_given(prepared: pathlib.Path) -> None:
    same = take(load(prepared, weights={"long": 5.0, "short": 5.0}), 20)
    assert_equal(take(load(prepared), 20), same)
    only = texts_of_streams(take(load(prepared, weights={"short": 2.0, "long": 0.0}), 100))
    assert {text.split()[0] for text in only} == {"short"}


def test_windows_leave_out_sources_of_weight_0(
    prepared: pathlib.Path, tmp_path: pathlib.Path
) -> None:
    """A window belongs to no source, so the other weights must be equal."""
    shutil.copytree(prepared, tmp_path / "data")
    manifest = data.load_manifest(prepared)

    def weigh(**weights: float) -> None:
        sources = [dataclasses.replace(s, weight=weights[s.name]) for s in manifest.sources]
        dataclasses.replace(manifest, sources=tuple(sources)).save(tmp_path / "data")

    weigh(short=0.0, long=2.0)
    drawn = take(load(tmp_path / "data", packing="windows", sequence_length=400), 20)
    rows = [
        bytes((row[row > 3] - 4).astype(np.uint8)) for batch in drawn for row in batch["tokens"]
    ]
    assert any(b"long " in row for row in rows)
    assert not any(b"short " in row for row in rows)
    whole = texts(load(tmp_path / "data", split="validation", packing="windows"))
    assert {text.split()[0] for text in whole} == {"short", "long"}
    weigh(short=1.0, long=2.0)
    with pytest.raises(ValueError, match="make them equal"):
        load(tmp_path / "data", packing="windows")


def test_windows_are_stretches_of_the_stream(prepared: pathlib.Path) -> None:
    manifest = data.load_manifest(prepared)
    batches = list(load(prepared, split="validation", packing="windows"))
    stream = flat(batches)
    assert len(stream) == manifest.split("validation").tokens - 1
    assert flat(batches, "targets")[:-1].tolist() == stream[1:].tolist()
    drawn = take(load(prepared, packing="windows"), 50)
    whole = b"".join(
        np.array([1, *(byte + 4 for byte in text.encode()), 2], np.int32).tobytes()
        for text in train_order(prepared)
    )
    for batch in drawn:
        assert all(row.tobytes() in whole for row in batch["tokens"])
        assert (batch["segment_ids"] == 1).all()
        assert (batch["positions"] == np.arange(32)).all()
        np.testing.assert_array_equal(batch["targets"][:, :-1], batch["tokens"][:, 1:])
    # Drawn from all over: 200 windows do not start alike.
    assert len({batch["tokens"][row].tobytes() for batch in drawn for row in range(4)}) > 190


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"split": "test"}, "split is 'test'"),
        ({"packing": "tight"}, "packing is 'tight'"),
        ({"batch_size": 0}, "batch_size is 0"),
        ({"sequence_length": 0}, "sequence_length is 0"),
        ({"seed": -1}, "seed is -1"),
        ({"epochs": 0}, "epochs is 0"),
        ({"prefetch": -1}, "prefetch is -1"),
        ({"process_count": 3}, "3 processes cannot share"),
        ({"process_index": 2, "process_count": 2}, "process_index is 2"),
        ({"weights": {"news": 1.0}}, "names 'news', but the sources are"),
        ({"weights": {"long": -1.0}}, "gives 'long' -1.0"),
        ({"weights": {"long": 0.0}}, "every source's weight is 0"),
        ({"packing": "windows", "epochs": 1}, "Leave both out"),
        ({"packing": "windows", "sequence_length": 10**6}, "the whole split has only"),
    ],
)
def test_arguments_are_checked_at_once(
    prepared: pathlib.Path, settings: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        load(prepared, **settings)


def test_unprepared_directories_are_named(tmp_path: pathlib.Path) -> None:
    with pytest.raises(FileNotFoundError, match="no prepared data in"):
        load(tmp_path)
