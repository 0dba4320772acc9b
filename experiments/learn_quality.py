r"""Trains a model that separates good text from bad, for the cleaning step `quality_model`.

    python -m experiments.learn_quality --good=books,wiki.jsonl.zst --bad=crawl \
        --output=models/quality.safetensors
    python -m experiments.learn_quality --good=wiki.parquet --bad=crawl.warc.gz \
        --steps=html,repair --kept_of=bad --kept=0.1,0.3 --output=models/quality.safetensors

It reads the formats that `experiments.prepare` reads. A share of the texts is held out, chosen by
their hash. On these it measures the accuracy, the area under the ROC curve, and for every share of
good texts to keep (of bad texts with --kept_of=bad), the minimum score that keeps it. The last line
of the output is a command that cleans with the model. --steps names the cleaning steps that come
before `quality_model`, so that it is trained on the texts that it will judge. The same texts and
settings give the same file.
"""

import json
import pathlib
import shlex
import sys
from collections import Counter
from typing import Literal, cast

from absl import flags as absl_flags
from rich.console import Console
from rich.progress import Progress
from rich.table import Table

from experiments import flags
from llmjax.data import config, directories, documents
from llmjax.data.cleaning import build, learned_quality
from llmjax.data.cleaning.learned_quality import Kind, Sample, Trial

GOOD = absl_flags.DEFINE_list("good", None, "Files, folders or globs of wanted texts.")
BAD = absl_flags.DEFINE_list("bad", None, "The same for unwanted texts, or a raw crawl.")
OUTPUT = absl_flags.DEFINE_string("output", None, "File to write the model to.")
TEXT_FIELD = absl_flags.DEFINE_string("text_field", "text", "The field or column with the text.")
SPLIT = absl_flags.DEFINE_enum(
    "split", "file", ["file", "paragraph", "line"], "What counts as a document in plain text."
)
STEPS = absl_flags.DEFINE_list("steps", [], "Cleaning steps that texts pass first.")
DOCUMENTS = absl_flags.DEFINE_integer(
    "documents", 100_000, "Maximum texts of each kind, drawn at random."
)
HELD_OUT = absl_flags.DEFINE_float("held_out", 0.1, "Share of texts held out for evaluation.")
KEPT = absl_flags.DEFINE_list(
    "kept", ["0.5", "0.8", "0.9", "0.95", "0.99"], "Shares of texts to print the minimum score for."
)
KEPT_OF = absl_flags.DEFINE_enum(
    "kept_of", "good", ["good", "bad"], "Which texts --kept refers to."
)
NGRAMS = absl_flags.DEFINE_integer("ngrams", 2, "Length of the longest n-gram of words and marks.")
FEATURES = absl_flags.DEFINE_integer(
    "features", 1 << 18, "Number of features that n-grams are hashed to."
)
REGULARIZATION = absl_flags.DEFINE_float(
    "regularization",
    0.1,
    "Weight of half the squared norm of the weights, against the summed loss.",
)
SEED = absl_flags.DEFINE_integer("seed", 0, "Random seed of the choice of texts.")
AS_JSON = absl_flags.DEFINE_bool("json", False, "Print one JSON object instead of text.")


def main(argv: list[str]) -> None:
    """The entry point."""
    del argv
    for name, value in (("good", GOOD.value), ("bad", BAD.value), ("output", OUTPUT.value)):
        if not value:
            raise flags.FlagError(
                f"--{name} is missing: name good texts, bad texts and a file to write"
            )
    output = pathlib.Path(OUTPUT.value or "")
    try:
        kept = [_number(share) for share in KEPT.value or ()]
        output.parent.mkdir(parents=True, exist_ok=True)  # before hours of work, not after
        with directories.progress() as bar:
            good, bad = _read(bar)
            bar.add_task("Training", total=None)
            model, trial = learned_quality.learn(
                good.texts,
                bad.texts,
                held_out=HELD_OUT.value,
                kept=kept,
                of=cast(Kind, KEPT_OF.value),
                seed=SEED.value,
                ngrams=NGRAMS.value,
                features=FEATURES.value,
                regularization=REGULARIZATION.value,
            )
        model.save(output)
    except (ValueError, OSError, ImportError) as error:
        raise flags.FlagError(str(error)) from error
    _tell_left_out({"good": good.left_out, "bad": bad.left_out}, trial.contradictory)
    if AS_JSON.value:
        print(json.dumps(trial.as_dict()))
    else:
        _show(trial, kept, output)


def _number(share: str) -> float:
    try:
        return float(share)
    except ValueError:
        raise flags.FlagError(f"--kept has {share!r}: give shares such as 0.5,0.9") from None


def _read(bar: Progress) -> list[Sample]:
    """Samples of the good and the bad texts."""
    steps = build.alone(STEPS.value or ())
    split = cast(Literal["file", "paragraph", "line"], SPLIT.value)
    kinds = [
        [
            config.Source(kind, path, text_field=TEXT_FIELD.value, split=split)
            for path in paths or ()
        ]
        for kind, paths in (("good", GOOD.value), ("bad", BAD.value))
    ]
    files = [file for sources in kinds for one in sources for file in documents.find_files(one)]
    task = bar.add_task("Reading", total=sum(file.size for file in files))
    return [
        learned_quality.sample(
            sources,
            most=DOCUMENTS.value,
            seed=SEED.value,
            steps=steps,
            advance=lambda read: bar.update(task, advance=read),
        )
        for sources in kinds
    ]


def _tell_left_out(reasons: dict[str, Counter[str]], contradictory: int) -> None:
    for kind, counts in reasons.items():
        for reason, count in counts.most_common():
            print(f"left out: {count:,} {kind} × {reason}", file=sys.stderr)
    if contradictory:
        print(f"left out: {contradictory:,} × both good and bad", file=sys.stderr)


def _show(trial: Trial, kept: list[float], output: pathlib.Path) -> None:
    learned, held_out = (
        f"{counts['good']:,} good and {counts['bad']:,} bad"
        for counts in (trial.learned, trial.held_out)
    )
    print(f"trained on {learned} texts, evaluated on {held_out}")
    print(f"accuracy {trial.accuracy:.4f} (mean of both kinds), ROC AUC {trial.roc_auc:.4f}")
    table = Table()
    for name in (f"share of {KEPT_OF.value}", "minimum", "good kept", "bad kept"):
        table.add_column(name, justify="right")
    for share, row in zip(kept, trial.thresholds, strict=True):
        table.add_row(f"{share:.1%}", f"{row.minimum:g}", f"{row.good:.1%}", f"{row.bad:.1%}")
    Console().print(table)
    steps = ",".join([*(STEPS.value or ()), "quality_model"])
    minimum = trial.thresholds[0].minimum if trial.thresholds else 0.5
    print(
        f"{output}: to clean with it, choose a minimum from the table\n"
        f"  python -m experiments.prepare ... --data.cleaning.steps={steps} "
        f"--data.cleaning.quality_model.model={shlex.quote(str(output))} "
        f"--data.cleaning.quality_model.minimum={minimum:g}"
    )


if __name__ == "__main__":
    flags.run(main)
