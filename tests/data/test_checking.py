"""Planted problems are found, at their file and line, and sound examples pass."""

import json
import pathlib

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from llmjax.data import checking, config, examples
from llmjax.data.checking import CheckConfig, quality_check
from llmjax.data.cleaning import Document, Rejected
from llmjax.data.examples import Example

SOURCE = config.ExampleSource("s", "unused.jsonl")


def labelled(text: str, label: str = "good") -> Example:
    return examples.parse({"text": text, "label": label}, "classification", SOURCE)


def answered(question: str, answer: str) -> Example:
    return examples.parse({"instruction": question, "output": answer}, "sft", SOURCE)


def no_spanish(document: Document) -> Document | Rejected:
    return Rejected(document, "unwanted language") if "que" in document.text else document


LONG = "because the light of the sun is scattered"


@pytest.mark.parametrize(
    ("example", "settings", "reasons"),
    [
        (labelled("A film to see."), CheckConfig(("good", "bad")), []),
        (labelled("A film.", "god"), CheckConfig(("good", "bad")), ["unknown label"]),
        (labelled("A film.", 1), CheckConfig(("good", "bad")), []),  # the number of a name
        (labelled("A film.", 2), CheckConfig(("good", "bad")), ["unknown label"]),
        (labelled("A film."), CheckConfig(shortest=3), ["too few words"]),
        (labelled("One two three four."), CheckConfig(longest=3), ["too many words"]),
        (labelled("lo que es"), CheckConfig(), ["unwanted language"]),
        (labelled("Nice! Label: good"), CheckConfig(), ["the answer is in the prompt"]),
        (labelled("Nice! Label: goodness"), CheckConfig(), []),
        (labelled("Nice! Label: good"), CheckConfig(leak=0), []),
        (labelled("label: C++.", "C++"), CheckConfig(), ["the answer is in the prompt"]),
        (answered("Why is it blue?", LONG), CheckConfig(), []),
        (
            answered(f"Why? Hint: {LONG.upper()}!", LONG),
            CheckConfig(),
            ["the answer is in the prompt"],
        ),
        (answered("Yes or no?", "Yes"), CheckConfig(), []),
        (answered("Yes or no?", "Yes"), CheckConfig(leak=1), ["the answer is in the prompt"]),
        (answered("Yesterday?", "Yes"), CheckConfig(leak=1), []),
        (answered("Why?", "lo que"), CheckConfig(), ["unwanted language"]),
    ],
)
def test_one_example(example: Example, settings: CheckConfig, reasons: list[str]) -> None:
    assert [reason for reason, _ in quality_check(example, settings, [no_spanish])] == reasons


def write(path: pathlib.Path, *records: object) -> config.ExampleSource:
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return config.ExampleSource(path.stem, str(path))


def test_sets_are_compared_and_places_given(tmp_path: pathlib.Path) -> None:
    train = write(
        tmp_path / "train.jsonl",
        {"text": "First one.", "label": "good"},
        {"text": "Second one.", "label": "good"},
        {"text": "first  ONE.", "label": "good"},
        {"text": "Second one.", "label": "bad"},
        {"text": "", "label": "good"},
        [],
    )
    test = write(
        tmp_path / "test.jsonl",
        {"text": "Third one.", "label": "good"},
        {"text": "Second one.", "label": "good"},
    )
    report = checking.check({"train": train, "test": test}, "classification")
    assert report.counts == {"train": 6, "test": 2}
    assert report.bad == {"train": 4, "test": 1}
    assert [str(problem) for problem in report.first] == [
        "train.jsonl:3: duplicate (as train.jsonl:1)",
        "train.jsonl:4: duplicate with another answer (as train.jsonl:2)",
        "train.jsonl:5: field 'text' is empty",
        "train.jsonl:6: not a JSON object",
        "test.jsonl:2: also in train (as train.jsonl:2)",
    ]
    assert report.as_dict()["reasons"]["also in train"] == 1


def test_ten_problems_are_shown_and_all_counted(tmp_path: pathlib.Path) -> None:
    source = write(tmp_path / "a.jsonl", *({"text": f"Text {i}", "label": "x"} for i in range(25)))
    report = checking.check({"train": source}, "classification", CheckConfig(("y", "z")))
    assert len(report.first) == 10
    assert report.reasons == {"unknown label": 25}
    assert [problem.position for problem in report.first] == list(range(1, 11))


def test_all_rows_that_a_damaged_file_loses_are_bad(tmp_path: pathlib.Path) -> None:
    rows = {"text": [f"text {i}" for i in range(600)], "label": ["x"] * 600}
    path = tmp_path / "a.parquet"
    options = {"row_group_size": 300, "compression": "none", "use_dictionary": False}
    pq.write_table(pa.table(rows), path, **options)
    content = path.read_bytes()
    page = content.index(b"text 300")
    path.write_bytes(content[: page - 50] + b"\xff" * 500 + content[page + 450 :])
    report = checking.check({"test": config.ExampleSource("a", str(path))}, "classification")
    assert report.counts["test"] == 600
    assert report.bad["test"] == report.reasons["damaged Parquet file"] >= 300


def test_settings_that_cannot_be() -> None:
    with pytest.raises(ValueError, match="a longest of at least the shortest"):
        CheckConfig(shortest=5, longest=3)
