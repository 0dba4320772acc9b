"""Searches for the best settings of a recipe, over any of its fields, by many short runs.

    python -m experiments.sweep --recipe=tiny --sweep=optimizer.learning_rate=log:1e-4:1e-1
    python -m experiments.sweep --recipe=tiny --sweep=model.dropout.hidden=0:0.3 --trials=10
    python -m experiments.sweep --stage=finetune --recipe=lora --sweep=peft.lora.rank=4,8,16

Optuna (pip install 'llmjax[sweep]') chooses the values of each trial from previous ones, and prunes
trials that do worse than others at the same step. After a kill, the same command continues, the
killed trial from its checkpoint; with more --trials it adds trials. Each trial is a run in
RUN_DIR/trials; RUN_DIR/sweep.html shows the search, and the last line printed is the command that
trains the best recipe.
"""

import dataclasses
import math
import pathlib
import shlex
import sys
from typing import cast

from absl import flags as absl_flags
from rich.console import Console

from experiments import flags, search_space, sweep_report
from experiments.recipe import Training
from experiments.recipes import STAGES
from experiments.sweeper import Pruner, Sweep, Trial
from experiments.training import Options
from llmjax.train.checkpoint import SaveError
from llmjax.train.integrity import DamagedError

RUN_DIR = absl_flags.DEFINE_string(
    "run_dir", None, "Folder of the sweep; by default runs/RECIPE_sweep."
)
SWEEP = absl_flags.DEFINE_multi_string(
    "sweep",
    [],
    "FIELD=LOW:HIGH, FIELD=LOW:HIGH:STEP, FIELD=log:LOW:HIGH, or FIELD=A,B,... (A|B|... if values "
    "contain commas). Repeat the flag for each field.",
)
TRIALS = absl_flags.DEFINE_integer(
    "trials", 20, "Number of trials, including those of earlier calls.", lower_bound=1
)
METRIC = absl_flags.DEFINE_string(
    "metric", None, "Evaluation metric to optimize; by default early_stopping.metric."
)
PRUNER = absl_flags.DEFINE_enum(
    "pruner", "median", ["median", "hyperband", "none"], "How trials are pruned."
)

STAGE = absl_flags.DEFINE_enum(
    "stage", "pretrain", list(STAGES), "Entry point whose recipes are trained."
)

# The stage determines the fields.
flags.define(STAGES[flags.peek("stage", STAGES, "pretrain")])

OWN = ("stage", "run_dir", "sweep", "trials", "metric", "pruner")


def main(argv: list[str]) -> None:
    """The entry point."""
    del argv
    recipe = with_metric(flags.resolve(), METRIC.value)
    space = search_space.parse_all(SWEEP.value, type(recipe))
    run_dir = pathlib.Path(RUN_DIR.value or f"runs/{recipe.name}_sweep")
    options = Options(command=flags.command_line())
    pruner = cast(Pruner, PRUNER.value)
    sweep = Sweep(recipe, space, run_dir, pruner, options)
    try:
        trials = sweep.run(TRIALS.value)
    except (SaveError, DamagedError) as error:
        sys.exit(f"{run_dir}: {error}")
    console, watched = Console(), sweep.watched
    console.print(sweep_report.table(trials, space, watched.metric))
    path = run_dir / "sweep.html"
    path.write_text(sweep_report.render(recipe.name, trials, space, watched), "utf-8")
    print(f"report: {path}")
    if math.isnan(trials[0].value):
        sys.exit(f"no trial has a {watched.metric}; the first: {trials[0].note}")
    best = trials[0]
    line = command(sweep, best, STAGE.value, METRIC.value)
    print(f"the best is trial {best.number}; train it with\n  {line}")


def with_metric(recipe: Training, metric: str | None) -> Training:
    """The recipe with the metric by which trials and best checkpoints are judged.

    Raises:
        FlagError: the metric's name does not show whether lower or higher is better.
    """
    if metric is None:
        return recipe
    try:
        watched = dataclasses.replace(recipe.early_stopping, metric=metric)
    except ValueError as error:
        raise flags.FlagError(str(error)) from None
    return dataclasses.replace(recipe, early_stopping=watched)


def command(sweep: Sweep, trial: Trial, stage: str, metric: str | None = None) -> str:
    """The command line that trains the recipe of a trial, judged by the metric of --metric."""
    swept = [dimension.name for dimension in sweep.space]
    given = flags.command_line(without=(*OWN, *swept), program=f"python -m experiments.{stage}")
    settings = [f"--{name}={value}" for name, value in trial.values.items()]
    if metric:
        settings.append(f"--early_stopping.metric={metric}")
    if not sweep.recipe.data.directory and sweep.data_directory is not None:
        settings.append(f"--data.directory={sweep.data_directory}")
    settings.append(f"--run_dir={sweep.run_dir / 'best'}")
    return f"{given} {shlex.join(settings)}"


if __name__ == "__main__":
    flags.run(main)
