"""Evaluates a trained model on held-out data.

Metrics depend on the task: perplexity and bits per byte for next tokens (clm), the loss at fixed
masks (mlm), both models' losses and the accuracy (rtd), perplexity of answers, the confusion of
labels, accuracy on comparisons of preferences, and rewards of a policy's answers to held-out
prompts. For reward models also calibration and length bias (RUN_DIR/reward_report.json, and the
page, unless the data are others than the run's).

    python -m experiments.evaluate --run_dir=runs/tiny
    python -m experiments.evaluate --run_dir=runs/tiny --data_dir=data/other --json

The default is the run's own validation split, all of it, each document once. Another folder must
have been prepared with the same tokenizer.
"""

import json
import math
import pathlib

import jax
from absl import flags as absl_flags
from rich.console import Console
from rich.table import Table

from experiments import flags, runs
from llmjax.train.report import write_report

RUN_DIR = absl_flags.DEFINE_string("run_dir", None, "Folder of the run.")
DATA_DIR = absl_flags.DEFINE_string(
    "data_dir", None, "Folder of prepared data; by default the run's own."
)
CHECKPOINT = absl_flags.DEFINE_enum("checkpoint", "best", ["best", "last"], "Checkpoint to load.")
BATCH_SIZE = absl_flags.DEFINE_integer(
    "batch_size", 0, "Rows (prompts) at a time; 0 as in training."
)
AS_JSON = absl_flags.DEFINE_bool("json", False, "Print one JSON object instead of a table.")


def main(argv: list[str]) -> None:
    """The entry point."""
    del argv
    if not RUN_DIR.value:
        raise flags.FlagError("--run_dir is missing: name the folder of a run")
    if BATCH_SIZE.value < 0:
        raise flags.FlagError(f"--batch_size={BATCH_SIZE.value}: must be at least 1, or 0")
    run_dir = pathlib.Path(RUN_DIR.value)
    task = runs.saved_task(run_dir)
    with jax.set_mesh(task.make_mesh_to_serve()):
        model = runs.load(run_dir, best=CHECKPOINT.value == "best")
        own = task.directory()
        where = pathlib.Path(DATA_DIR.value or own), BATCH_SIZE.value or None
        model.task.keeps = where[0].resolve() == own.resolve()  # the page is about the run's data
        found = runs.evaluate_model(model, *where)
        report = runs.report_on(model, *where)
    if report is not None:
        found |= report.metrics()
        if model.task.keeps:
            write_report(run_dir)  # with its chart
    if AS_JSON.value:
        plain = {n: x if math.isfinite(x) else None for n, x in found.items()}
        print(json.dumps({"step": model.step, **plain}))
        return
    table = Table(show_header=False)
    for name, value in found.items():
        table.add_row(name, f"{value:,}" if isinstance(value, int) else f"{value:.4f}")
    console = Console()
    console.print(f"{run_dir}, step {model.step}", markup=False, highlight=False, soft_wrap=True)
    console.print(table)
    if report is not None:
        console.print(report.table())


if __name__ == "__main__":
    flags.run(main)
