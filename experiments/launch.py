"""Flags and main function shared by the entry points of training runs."""

import pathlib
import sys

from absl import flags as absl_flags

from experiments import flags, processes, runs, training
from llmjax.train.checkpoint import SaveError
from llmjax.train.integrity import DamagedError
from llmjax.train.loop import DivergedError

RUN_DIR = absl_flags.DEFINE_string("run_dir", None, "Folder of the run; by default runs/RECIPE.")
RESUME = absl_flags.DEFINE_bool("resume", True, "Resume the run in the folder, if there is one.")
HANG_SECONDS = absl_flags.DEFINE_float(
    "hang_seconds",
    1800.0,
    "End the run if no step or evaluation batch completes for this long; 0 waits forever.",
    lower_bound=0.0,
)
PROFILE = absl_flags.DEFINE_string(
    "profile", None, "START:STOP, the steps to trace to RUN_DIR/profile."
)
WANDB = absl_flags.DEFINE_string(
    "wandb", None, "Weights & Biases project to log metrics to as well; needs llmjax[wandb]."
)


def main(argv: list[str]) -> None:
    """Trains the recipe that the command line describes."""
    del argv
    processes.join()
    run_dir = pathlib.Path(RUN_DIR.value) if RUN_DIR.value else None
    recipe = flags.resolve(run_dir and runs.saved_recipe(run_dir))
    run_dir = run_dir or pathlib.Path("runs") / recipe.name
    options = training.Options(
        resume=RESUME.value,
        hang_seconds=HANG_SECONDS.value,
        profile=flags.step_range("profile", PROFILE.value, recipe.steps) if PROFILE.value else None,
        wandb=WANDB.value or "",
        command=flags.command_line(without=("resume", "profile")),
    )
    try:
        report = training.run(recipe, run_dir, options)
    except (DivergedError, SaveError, DamagedError) as error:
        sys.exit(f"{run_dir}: {error}")
    print(f"report: {report}")
