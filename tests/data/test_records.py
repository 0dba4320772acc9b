"""Records of Parquet files: every row comes out once, as a record or with what is wrong with it."""

import json
import pathlib

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from llmjax.data import config, conversion, documents, records


def read(path: pathlib.Path) -> list[records.Item]:
    (file,) = documents.find_files(config.ExampleSource("s", str(path)))
    return list(records.read(file))


def test_rows_that_cannot_be_read_do_not_take_others_along(tmp_path: pathlib.Path) -> None:
    texts = [b"text %d" % i if i % 100 else b"\xff" for i in range(600)]
    table = pa.table(
        {
            "text": pa.array(texts).cast(pa.string(), safe=False),
            "day": pa.array([2**30 if i == 7 else i for i in range(600)], pa.date32()),
        }
    )
    pq.write_table(table, tmp_path / "a.parquet", row_group_size=250)
    items = read(tmp_path / "a.parquet")
    assert [item.position for item in items] == list(range(1, 601))
    bad = [i for i, item in enumerate(items) if isinstance(item, documents.Rejected)]
    assert bad == sorted([7, *range(0, 600, 100)])
    for i, item in enumerate(items):
        if isinstance(item, documents.Rejected):
            assert item.reason == "unreadable value"
        else:
            assert item.fields["text"] == f"text {i}"


def test_numbers_that_json_does_not_have_are_null(tmp_path: pathlib.Path) -> None:
    rows = [{"text": "a", "grade": float("nan"), "grades": [1.0, float("inf")], "n": 2.0}]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "a.parquet")
    (item,) = read(tmp_path / "a.parquet")
    assert isinstance(item, records.Record)
    assert item.fields == {"text": "a", "grades": [1.0, None], "n": 2.0}
    source = config.ExampleSource("s", str(tmp_path / "a.parquet"))
    conversion.convert(source, tmp_path / "a.jsonl", "sft", "text")
    strict = json.loads((tmp_path / "a.jsonl").read_text(), parse_constant=pytest.fail)
    assert strict == item.fields


def test_a_table_that_expands_too_much_is_refused(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(documents, "FREE_EXPANSION_BYTES", 1 << 16)
    table = pa.table({"text": ["a" * (1 << 20)] * 5})
    pq.write_table(table, tmp_path / "a.parquet", compression="zstd", use_dictionary=False)
    (item,) = read(tmp_path / "a.parquet")
    assert isinstance(item, documents.Rejected)
    assert (item.reason, item.count) == ("decompression bomb", 5)
