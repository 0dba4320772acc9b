"""Examples are prepared as documents are, split as told, and shown where they are of no use."""

import collections
import dataclasses
import gzip
import json
import pathlib
from collections.abc import Sequence
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zstandard
from array_record.python import array_record_module

from llmjax import data
from llmjax.data import config, documents, examples, records, tokenized, tokenizer

BYTES = tokenizer.ByteTokenizer()
QUESTIONS = [{"instruction": f"Question {i}?", "output": f"Answer {i}."} for i in range(60)]
FILMS = [
    {
        "text": f"film {i}",
        "label": ["bad", "fair", "good"][i * i % 3],
        "studio": i % 7,
        "date": f"20{i // 12:02}-{i % 12 + 1:02}-01",
    }
    for i in range(60)
]


def write(path: pathlib.Path, records: Sequence[Any]) -> str:
    lines = (line if isinstance(line, str) else json.dumps(line) for line in records)
    path.write_text("".join(f"{line}\n" for line in lines))
    return str(path)


def settings(path: str, **changes: Any) -> config.ExampleConfig:
    base = config.ExampleConfig((config.ExampleSource("s", path),), validation_share=0.2)
    return dataclasses.replace(base, **changes)


def stored(directory: pathlib.Path, split: data.SplitName) -> list[tokenized.Tokenized]:
    """The examples of a split, read without the loader."""
    found = []
    for shard in data.load_manifest(directory).split(split).shards:
        reader = array_record_module.ArrayRecordReader(str(directory / shard.file))
        found += map(tokenized.Tokenized.from_bytes, reader.read_all())
        reader.close()
    return found


def words(example: tokenized.Tokenized) -> str:
    return BYTES.decode(tokenized.unsigned(example.sequences[0])[0])


def sides(directory: pathlib.Path) -> dict[str, str]:
    """The words of every example and its side."""
    return {words(e): split for split in data.SPLITS for e in stored(directory, split)}


def test_every_example_is_stored_once(tmp_path: pathlib.Path) -> None:
    wanted = settings(write(tmp_path / "a.jsonl", QUESTIONS), shard_tokens=500)
    directory = tmp_path / "data"
    manifest = data.prepare_examples(wanted, directory, BYTES)
    found = [e for split in data.SPLITS for e in stored(directory, split)]
    answers = [BYTES.decode(e.sequences[0][e.sequences[0] >= 0]) for e in found]
    assert sorted(answers) == sorted(record["output"] for record in QUESTIONS)
    assert len(manifest.split("train").shards) > 3
    whole = manifest.split("train") + manifest.split("validation")
    assert whole.documents == 60
    assert whole.tokens == sum(e.length for e in found)
    assert whole.bytes == sum(map(len, answers))  # of what is trained; ASCII
    assert manifest.examples is not None
    assert manifest.examples.kind == "sft"
    assert manifest.examples.longest == max(e.length for e in found)
    assert data.load_tokenizer(directory).fingerprint == BYTES.fingerprint
    assert data.load_manifest(directory) == manifest
    assert sorted(path.name for path in directory.iterdir()) == [
        ".lock", "manifest.json", "rejected.jsonl", "shards", "tokenizer.meta.json",
    ]  # fmt: skip
    data.verify(directory)
    # Nothing is done again, and nothing is overwritten unasked.
    before = (directory / "shards").stat().st_ctime_ns
    assert data.prepare_examples(wanted, directory, BYTES) == manifest
    assert (directory / "shards").stat().st_ctime_ns == before
    with pytest.raises(ValueError, match="max_length: 1024 there, 64 now"):
        data.prepare_examples(dataclasses.replace(wanted, max_length=64), directory, BYTES)
    template = tmp_path / "own.jinja"
    template.write_text("{% for m in messages %}{{ m.content }}{% endfor %}")
    with pytest.raises(ValueError, match=r"template: plain there, .*own\.jinja now"):
        changed = dataclasses.replace(wanted, template=str(template))
        data.prepare_examples(changed, directory, BYTES)
    with pytest.raises(ValueError, match="examples of kind 'sft', not documents"):
        data.batches(directory, split="train", batch_size=1, sequence_length=8)


@pytest.mark.parametrize("suffix", [".jsonl.gz", ".jsonl.zst", ".parquet"])
def test_formats_give_the_same_examples(tmp_path: pathlib.Path, suffix: str) -> None:
    roles = ("user", "assistant")
    records = [
        {"messages": [{"role": r, "content": f"{r} {i}"} for r in roles * (1 + i % 2)]}
        for i in range(20)
    ]
    path = tmp_path / f"a{suffix}"
    text = "".join(json.dumps(record) + "\n" for record in records).encode()
    if suffix == ".parquet":
        pq.write_table(pa.Table.from_pylist(records), path)
    else:
        path.write_bytes({"gz": gzip.compress, "zst": zstandard.compress}[suffix[7:]](text))
    plain = settings(write(tmp_path / "plain.jsonl", records))
    data.prepare_examples(plain, tmp_path / "plain", BYTES)
    data.prepare_examples(settings(str(path)), tmp_path / "other", BYTES)
    assert sides(tmp_path / "other") == sides(tmp_path / "plain")
    assert len(sides(tmp_path / "plain")) == 20


def test_null_is_no_value_in_any_format(tmp_path: pathlib.Path) -> None:
    """Rows of unlike columns have nulls in Parquet, and in lines that are written from them."""
    lines = [{"instruction": "a", "input": None, "output": "b"}, {"instruction": "a", "input": "c"}]
    pq.write_table(pa.Table.from_pylist(lines), tmp_path / "a.parquet")
    write(tmp_path / "a.jsonl", lines)
    for suffix in ("parquet", "jsonl"):
        source = config.ExampleSource("s", str(tmp_path / f"a.{suffix}"))
        (file,) = documents.find_files(source)
        first, second = (item.fields for item in records.read(file))  # type: ignore[union-attr]
        assert first == {"instruction": "a", "output": "b"}
        assert second == {"instruction": "a", "input": "c"}
        example = examples.parse(first, "sft", source)
        assert example.prompt == ({"role": "user", "content": "a"},)


def test_malformed_records_are_counted_and_kept_aside(tmp_path: pathlib.Path) -> None:
    bad = ['{"torn', {"instruction": "a", "output": ""}, '{"text": "\\ud800"}', {"title": "b"}]
    path = write(tmp_path / "a.jsonl", [*QUESTIONS[:10], *bad, *QUESTIONS[10:]])
    wanted = settings(path, max_rejected_share=0.1)
    manifest = data.prepare_examples(wanted, tmp_path / "data", BYTES)
    misfit = (
        "no form fits the fields ['title']: wanted messages; or instruction and output; or text. "
        "Name others in the source's fields, as part:field"
    )
    assert manifest.sources[0].rejected == {
        "not JSON": 1, "an answer is empty": 1, "unpaired surrogate": 1, misfit: 1,
    }  # fmt: skip
    kept = (tmp_path / "data" / "rejected.jsonl").read_text().splitlines()
    assert [json.loads(line)["line"] for line in kept] == [11, 12, 13, 14]
    assert json.loads(kept[3])["raw"] == '{"title": "b"}'
    with pytest.raises(ValueError, match=r"4 of 64 examples are malformed .*6\.25%.*=0\.01"):
        stricter = dataclasses.replace(wanted, max_rejected_share=0.01)
        data.prepare_examples(stricter, tmp_path / "data", BYTES, overwrite=True)


def test_a_template_that_marks_nothing_is_an_error_that_shows_the_example(
    tmp_path: pathlib.Path,
) -> None:
    template = tmp_path / "silent.jinja"
    template.write_text("{% generation %}{% endgeneration %}{{ messages[0].content }}")
    path = write(tmp_path / "a.jsonl", QUESTIONS)
    # Even where every example may be malformed, no run is left without any.
    for share in (0.01, 1.0):
        wanted = settings(path, template=str(template), max_rejected_share=share)
        with pytest.raises(ValueError, match="generation marks contain nothing") as error:
            data.prepare_examples(wanted, tmp_path / "data", BYTES)
        assert "60 of 60 examples" in str(error.value)
        assert json.dumps(QUESTIONS[0]) in str(error.value)
        assert not (tmp_path / "data" / "manifest.json").exists()


def films(tmp_path: pathlib.Path, name: str, **changes: Any) -> dict[str, str]:
    path = write(tmp_path / "films.jsonl", FILMS)
    wanted = settings(path, kind="classification", **changes)
    data.prepare_examples(wanted, tmp_path / name, BYTES)
    return sides(tmp_path / name)


def test_splits_by_config(tmp_path: pathlib.Path) -> None:
    def shares(found: dict[str, str], field: str) -> dict[Any, float]:
        all_ = collections.Counter(film[field] for film in FILMS)
        out = collections.Counter(f[field] for f in FILMS if found[f["text"]] == "validation")
        return {value: out[value] / count for value, count in all_.items()}

    stratified = shares(films(tmp_path, "stratified", split="stratified"), "label")
    assert stratified == {"bad": 0.2, "fair": 0.2}  # of 20 and 40; squares are never 2 mod 3
    grouped = shares(films(tmp_path, "grouped", split="grouped", split_field="studio"), "studio")
    assert set(grouped.values()) == {0.0, 1.0}
    by_time = films(tmp_path, "time", split="time", split_field="date")
    out = [film["date"] for film in FILMS if by_time[film["text"]] == "validation"]
    assert out == sorted(film["date"] for film in FILMS)[-12:]


@pytest.mark.parametrize(
    "how",
    [{"split": "hash"}, {"split": "stratified"}, {"split": "grouped", "split_field": "studio"}],
    ids=lambda how: how["split"],
)
def test_folds_hold_out_each_example_once(tmp_path: pathlib.Path, how: dict[str, str]) -> None:
    held_out: collections.Counter[str] = collections.Counter()
    for fold in range(3):
        found = films(tmp_path, str(fold), folds=3, fold=fold, **how)
        held_out.update(text for text, side in found.items() if side == "validation")
    assert held_out == collections.Counter(film["text"] for film in FILMS)


def test_labels_are_numbered(tmp_path: pathlib.Path) -> None:
    def numbers(records: Sequence[Any], **changes: Any) -> tuple[tuple[str, ...], dict[str, int]]:
        path = write(tmp_path / "labels.jsonl", records)
        wanted = settings(path, kind="classification", validation_share=0.0, **changes)
        manifest = data.prepare_examples(wanted, tmp_path / "labels", BYTES, overwrite=True)
        assert manifest.examples is not None
        found = stored(tmp_path / "labels", "train")
        return manifest.examples.labels, {words(e): e.label for e in found}

    assert numbers(FILMS)[0] == ("bad", "fair")
    three = [{"text": t, "label": label} for t, label in (("a", 2), ("b", 0), ("c", 2))]
    assert numbers(three) == (("0", "1", "2"), {"a": 2, "b": 0, "c": 2})
    names = ("no", "perhaps", "yes")
    mixed = [{"text": "a", "label": "yes"}, {"text": "b", "label": 1}]
    assert numbers(mixed, labels=names) == (names, {"a": 2, "b": 1})
    with pytest.raises(ValueError, match=r"names \(yes\) and numbers \(1\) mixed"):
        numbers(mixed)
    with pytest.raises(ValueError, match="the label is not one of no, yes"):
        numbers(three, labels=("no", "yes"))


def test_empty_results_are_refused(tmp_path: pathlib.Path) -> None:
    with pytest.raises(ValueError, match="sources is empty"):
        data.prepare_examples(config.ExampleConfig(), tmp_path / "data", BYTES)
    empty = write(tmp_path / "empty.jsonl", [])
    with pytest.raises(ValueError, match="source 's' holds no records"):
        data.prepare_examples(settings(empty), tmp_path / "data", BYTES)
    path = write(tmp_path / "a.jsonl", QUESTIONS[:3])
    with pytest.raises(ValueError, match="none of 3 examples fell into the validation split"):
        few = settings(path, validation_share=1e-9)
        data.prepare_examples(few, tmp_path / "data", BYTES)
    with pytest.raises(ValueError, match="'s' has no training examples"):
        all_ = settings(path, validation_share=1 - 1e-9)
        data.prepare_examples(all_, tmp_path / "data", BYTES)
    with pytest.raises(ValueError, match="no field 'user', by which examples are split"):
        grouped = settings(path, split="grouped", split_field="user")
        data.prepare_examples(grouped, tmp_path / "data", BYTES)
    with pytest.raises(ValueError, match="neither a number nor a time in ISO 8601"):
        timed = settings(path, split="time", split_field="output")
        data.prepare_examples(timed, tmp_path / "data", BYTES)
    (tmp_path / "a.txt").write_text("text")
    with pytest.raises(ValueError, match=r"cannot tell the format of .*must end in one of \.jsonl"):
        data.prepare_examples(settings(str(tmp_path / "a.txt")), tmp_path / "data", BYTES)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"kind": "dpo"}, "kind is 'dpo'"),
        ({"train_on": "all"}, "train_on is 'all'"),
        ({"split": "random"}, "split is 'random'"),
        ({"split": "grouped"}, "split is 'grouped' with split_field=''"),
        ({"split_field": "user"}, "split is 'hash' with split_field='user'"),
        ({"split": "stratified"}, "have no labels"),
        ({"split_seed": -1}, "split_seed is -1"),
        ({"folds": 1}, "fold is 0 with folds=1"),
        ({"folds": 3, "fold": 3}, "fold is 3 with folds=3"),
        ({"folds": 3, "split": "time", "split_field": "t"}, "cannot be ordered by time"),
        ({"max_length": 7}, "max_length is 7"),
        ({"target_share": 0.0}, r"target_share is 0\.0"),
        ({"labels": ("a", "a")}, "labels is"),
        ({"validation_share": 1.0}, r"ExampleConfig.validation_share is 1\.0"),
        ({"max_rejected_share": 2.0}, r"ExampleConfig.max_rejected_share is 2\.0"),
        ({"shard_tokens": 0}, "ExampleConfig.shard_tokens is 0"),
        ({"sources": (config.ExampleSource("a", "x"),) * 2}, "sources has a name twice"),
    ],
)
def test_settings_are_checked(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        settings("a.jsonl", **changes)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"name": "a/b"}, "ExampleSource.name is 'a/b'"),
        ({"path": ""}, "ExampleSource.path of 'a' is empty"),
        ({"weight": -1.0}, "ExampleSource.weight of 'a'"),
        ({"form": "chat"}, "ExampleSource.form of 'a' is 'chat'"),
        ({"fields": ("output",)}, "fields of 'a' has 'output'"),
        ({"fields": ("reply:answer",)}, "fields of 'a' has 'reply:answer'"),
        ({"fields": ("output:a", "output:b")}, "names a part twice"),
    ],
)
def test_sources_are_checked(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        config.ExampleSource(**{"name": "a", "path": "x", **changes})


def test_no_record_ends_the_reading(tmp_path: pathlib.Path) -> None:
    """What JSON and Parquet can hold is more than floats, dates and text can."""
    huge = [10**400, -(10**400), 1e300, float("nan"), [1], {"a": 1}, None, True]
    pair = {"prompt": "a", "responses": ["b", "c"]}
    lines = [
        *({"conversations": [{"from": sender, "value": "a"}]} for sender in huge),
        *({**pair, "scores": [number, 1]} for number in huge),
        *({**pair, "margin": number} for number in huge),
        *({"prompt": "a", "completion": "b", "label": number} for number in huge),
        {**pair, "time": 10**400},
        pair | {"time": "2020-01-01"},
    ]
    path = write(tmp_path / "a.jsonl", lines)
    for kind in config.KINDS:
        given = settings(path, kind=kind, max_rejected_share=1.0, validation_share=0.0)
        if kind == "comparison":
            given = dataclasses.replace(given, split="time", split_field="time")
        try:
            data.prepare_examples(given, tmp_path / kind, BYTES)
        except ValueError as error:
            assert "malformed" in str(error)


def test_labels_that_are_codes_are_refused(tmp_path: pathlib.Path) -> None:
    path = write(tmp_path / "a.jsonl", [{"text": "a", "label": n} for n in (0, 1e300)])
    with pytest.raises(ValueError, match="only 2 occur"):
        data.prepare_examples(settings(path, kind="classification"), tmp_path / "out", BYTES)


def test_one_unreadable_row_is_one_row(tmp_path: pathlib.Path) -> None:
    text = pa.array([b"a", b"\xff", b"c"]).cast(pa.string(), safe=False)
    when = pa.array([0, 0, 1 << 50], pa.timestamp("ms"))
    pq.write_table(pa.table({"text": text, "when": when}), tmp_path / "a.parquet")
    source = config.ExampleSource("s", str(tmp_path))
    (file,) = documents.find_files(source)
    first, *others = records.read(file)
    assert isinstance(first, records.Record)
    assert [(item.reason, item.position, item.count) for item in others] == [  # type: ignore[union-attr]
        ("unreadable value", 2, 1),
        ("unreadable value", 3, 1),
    ]


def test_a_bomb_is_told_as_what_it_is(tmp_path: pathlib.Path, monkeypatch) -> None:
    monkeypatch.setattr(documents, "FREE_EXPANSION_BYTES", 1 << 16)
    (tmp_path / "a.jsonl.gz").write_bytes(gzip.compress(b" " * (1 << 22)))
    (file,) = documents.find_files(config.ExampleSource("s", str(tmp_path)))
    (item,) = records.read(file)
    assert isinstance(item, documents.Rejected)
    assert item.reason == "decompression bomb"
