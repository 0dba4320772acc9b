r"""Checks examples before training on them, or converts them to another form.

    python -m experiments.check_data --train=train.jsonl --test=test.jsonl --kind=classification \
        --labels=negative,positive --steps=language,harmful_content
    python -m experiments.check_data --train=alpaca.jsonl --kind=sft --convert=messages \
        --output=messages.jsonl

Reports records that are not examples of the kind, are too short or long, have an unknown label,
contain their answer in the prompt, are duplicates, or are in both sets; with cleaning --steps also
those in another language or harmful. Shows the first ten by file and line. Exits with 1 if there
are any. Conversion keeps fields that examples of no kind have, and leaves out and counts records
that do not fit the form.
"""

import json
import pathlib
import sys
from typing import cast

from absl import flags as absl_flags
from rich.console import Console
from rich.table import Table

from experiments import flags
from llmjax.data import checking, conversion, directories, documents, forms
from llmjax.data.cleaning import build
from llmjax.data.config import KINDS, ExampleSource, Kind

TRAIN = absl_flags.DEFINE_string("train", None, "File, folder or glob of examples.")
TEST = absl_flags.DEFINE_string("test", None, "Held-out examples, if any.")
KIND = absl_flags.DEFINE_enum("kind", "sft", list(KINDS), "Kind of the examples.")
FIELDS = absl_flags.DEFINE_multi_string(
    "field", None, "Field of a part of records, as part:field, if not detected. Repeat for each."
)
LABELS = absl_flags.DEFINE_list("labels", [], "Names of the labels, in order of their numbers.")
SHORTEST = absl_flags.DEFINE_integer("shortest", 1, "Minimum words of a text, question or answer.")
LONGEST = absl_flags.DEFINE_integer("longest", 0, "Maximum words of the same; 0 for no limit.")
LEAK = absl_flags.DEFINE_integer(
    "leak", 5, "Answers of at least this many words must not be in the prompt; 0 for no check."
)
STEPS = absl_flags.DEFINE_list("steps", [], "Cleaning steps that texts must pass.")
CONVERT = absl_flags.DEFINE_enum("convert", None, list(forms.FORMS), "Form to write.")
OUTPUT = absl_flags.DEFINE_string("output", None, "File for --convert, .jsonl.")
QUESTION = absl_flags.DEFINE_string(
    "question", "", "For --convert: question about texts whose label becomes the answer."
)
AS_JSON = absl_flags.DEFINE_bool("json", False, "Print one JSON object instead of text.")

_CHECKING = ("test", "labels", "shortest", "longest", "leak", "steps", "json")
_CONVERTING = ("question",)


def main(argv: list[str]) -> int:
    """The entry point."""
    del argv
    if not TRAIN.value:
        raise flags.FlagError("--train is missing: name a file of examples")
    if bool(CONVERT.value) != bool(OUTPUT.value):
        raise flags.FlagError("--convert and --output go together: give both")
    for name in _CHECKING if CONVERT.value else _CONVERTING:
        if absl_flags.FLAGS[name].present:
            what = "does not check" if CONVERT.value else "is missing"
            raise flags.FlagError(f"--{name} has no effect, as --convert {what}: leave it out")
    try:
        return _convert() if CONVERT.value else _check()
    except (ValueError, OSError, ImportError) as error:
        raise flags.FlagError(str(error)) from error


def _source(name: str, path: str | None) -> ExampleSource:
    return ExampleSource(name, path or "", fields=tuple(FIELDS.value or ()))


def _check() -> int:
    given = {"train": TRAIN.value, "test": TEST.value}
    sources = {name: _source(name, path) for name, path in given.items() if path}
    labels = tuple(LABELS.value)
    settings = checking.CheckConfig(labels, SHORTEST.value, LONGEST.value, LEAK.value)
    with directories.progress() as bar:
        task = bar.add_task("Checking", total=_size(*sources.values()))
        report = checking.check(
            sources,
            cast(Kind, KIND.value),
            settings,
            build.alone(STEPS.value or ()),
            lambda read: bar.update(task, advance=read),
        )
    for split, source in sources.items():
        if not report.counts[split]:
            raise flags.FlagError(f"--{split}={source.path}: there are no records in it")
    if AS_JSON.value:
        print(json.dumps(report.as_dict()))
    else:
        _show(report)
    return int(any(report.bad.values()))


def _show(report: checking.Report) -> None:
    console = Console(highlight=False)
    for problem in report.first:
        console.print(str(problem), markup=False, soft_wrap=True)
    total, shown = sum(report.reasons.values()), len(report.first)
    if total > shown:
        console.print(f"… and {total - shown:,} more problems")
    if total:
        table = Table()
        table.add_column("problem")
        table.add_column("count", justify="right")
        for reason, count in report.reasons.most_common():
            table.add_row(reason, f"{count:,}")
        console.print(table)
    for split, count in report.counts.items():
        console.print(f"{split}: {count - report.bad[split]:,} of {count:,} examples are valid")


def _convert() -> int:
    source = _source("train", TRAIN.value)
    with directories.progress() as bar:
        task = bar.add_task("Converting", total=_size(source))
        written, left_out = conversion.convert(
            source,
            pathlib.Path(OUTPUT.value or ""),
            cast(Kind, KIND.value),
            CONVERT.value or "",
            question=QUESTION.value,
            advance=lambda read: bar.update(task, advance=read),
        )
    print(f"{OUTPUT.value}: {written:,} examples")
    for reason, count in left_out.most_common():
        print(f"left out: {count:,} × {reason}", file=sys.stderr)
    return 0


def _size(*sources: ExampleSource) -> int:
    suffixes = documents.RECORD_SUFFIXES
    return sum(file.size for s in sources for file in documents.find_files(s, suffixes))


if __name__ == "__main__":
    flags.run(main)
