r"""Augments examples, and keeps the copies that preserve their meaning.

    python -m experiments.augment --input=train.jsonl --output=more.jsonl --kind=classification
    python -m experiments.augment --recipe=translated --input=train.jsonl --output=more.jsonl \
        --control.embedder=checkpoints/all-MiniLM-L6-v2 --classifier=runs/labels

The output has the original examples, each followed by its copies, which have a field
"augmentation" with the method and the scores of the checks. Only model inputs are rewritten, never
targets. Copies that are unchanged, too long or short, dissimilar (--control.embedder) or get
another label (--classifier) are dropped and counted.

Augment only training data. If the file is split afterwards, every record's "origin" keeps copies in
the split of their original: --data.split=grouped --data.split_field=origin.
"""

import json
import pathlib
from typing import cast

from absl import flags as absl_flags
from rich.console import Console
from rich.table import Table

from experiments import flags
from experiments.recipes import AUGMENTING
from llmjax.data import augmentation, directories, documents
from llmjax.data.config import KINDS, ExampleSource, Kind

INPUT = absl_flags.DEFINE_string("input", None, "File, folder or glob of examples.")
OUTPUT = absl_flags.DEFINE_string("output", None, "File to write, .jsonl.")
KIND = absl_flags.DEFINE_enum("kind", "classification", list(KINDS), "Kind of the examples.")
FIELDS = absl_flags.DEFINE_multi_string(
    "field", None, "Field of a part of records, as part:field, if not detected. Repeat for each."
)
CLASSIFIER = absl_flags.DEFINE_string(
    "classifier", None, "Run of finetune --objective=classification; copies must keep its label."
)
AS_JSON = absl_flags.DEFINE_bool("json", False, "Print one JSON object instead of tables.")

flags.define(AUGMENTING, "usual")


def main(argv: list[str]) -> None:
    """The entry point."""
    del argv
    if not INPUT.value or not OUTPUT.value:
        raise flags.FlagError("--input or --output is missing: name the files to read and to write")
    settings = flags.resolve()
    try:
        source = ExampleSource("input", INPUT.value, fields=tuple(FIELDS.value or ()))
        files = documents.find_files(source, documents.RECORD_SUFFIXES)
        classify = _classify(pathlib.Path(CLASSIFIER.value)) if CLASSIFIER.value else None
        checks = settings.make_checks(classify, classify.labels if classify else ())
        with directories.progress() as bar:
            task = bar.add_task("Augmenting", total=sum(file.size for file in files))
            report = augmentation.augment_examples(
                source,
                OUTPUT.value,
                settings.make_methods(),
                kind=cast(Kind, KIND.value),
                copies=settings.copies,
                seed=settings.seed,
                checks=checks,
                advance=lambda read: bar.update(task, advance=read),
            )
    except (ValueError, OSError, RuntimeError, ImportError) as error:
        raise flags.FlagError(str(error)) from error
    if AS_JSON.value:
        print(json.dumps(report.as_dict()))
    else:
        _show(report)


def _classify(run_dir: pathlib.Path) -> augmentation.Classifier:
    """The model of a run as a function from texts to labels."""
    from experiments import runs  # imports all of training

    model = runs.load(run_dir)
    if model.config.head.kind != "classification":
        raise flags.FlagError(
            f"--classifier={run_dir}: its head has kind {model.config.head.kind}; name a run of "
            "experiments.finetune --objective=classification"
        )
    (found,) = model.task.trained_models(model.params).values()
    config, params = found
    labels = tuple(model.recipe.data.labels)
    return augmentation.Classifier(config, params, model.tokenizer, labels)


def _show(report: augmentation.Report) -> None:
    title = f"Augmented copies of {report.originals:,} examples"
    table = Table(title=title, title_justify="left")
    table.add_column("method")
    table.add_column("kept", justify="right")
    table.add_column("dropped", justify="right")
    table.add_column("reasons")
    for method, reasons in report.dropped.items():
        why = ", ".join(f"{count:,} {reason}" for reason, count in reasons.most_common())
        table.add_row(method, f"{report.written[method]:,}", f"{reasons.total():,}", why)
    console = Console()
    console.print(table)
    for reason, count in report.malformed.most_common():
        console.print(f"left out: {count:,} × {reason}", highlight=False, markup=False)


if __name__ == "__main__":
    flags.run(main)
