"""The flags that all training runs have, and what their entry points do with them."""

import pathlib
import sys

from absl import flags as absl_flags

from experiments import flags, processes, runs, training
from llmjax.train.checkpoint import SaveError
from llmjax.train.integrity import DamagedError
from llmjax.train.loop import DivergedError

RUN_DIR = absl_flags.DEFINE_string("run_dir", None, "Folder of the run; runs/RECIPE if not given.")
RESUME = absl_flags.DEFINE_bool("resume", True, "Go on with the run that is in the folder.")
HANG_SECONDS = absl_flags.DEFINE_float(
    "hang_seconds", 1800.0, "End the run when no step completes for so long; 0 waits for ever."
)
PROFILE = absl_flags.DEFINE_string(
    "profile", None, "START:STOP, the steps of which RUN_DIR/profile gets a trace."
)
WANDB = absl_flags.DEFINE_string(
    "wandb", None, "Project of Weights & Biases that gets the metrics too; needs llmjax[wandb]."
)


def main(argv: list[str]) -> None:
    """Trains the recipe that the command line asks for."""
    del argv
    processes.join()
    run_dir = pathlib.Path(RUN_DIR.value) if RUN_DIR.value else None
    recipe = flags.resolve(run_dir and runs.saved_recipe(run_dir))
    run_dir = run_dir or pathlib.Path("runs") / recipe.name
    options = training.Options(
        resume=RESUME.value,
        hang_seconds=HANG_SECONDS.value,
        profile=flags.step_range("profile", PROFILE.value) if PROFILE.value else None,
        wandb=WANDB.value or "",
        command=flags.command_line(without=("resume", "profile")),
    )
    try:
        report = training.run(recipe, run_dir, options)
    except (DivergedError, SaveError, DamagedError) as error:
        sys.exit(f"{run_dir}: {error}")
    print(f"report: {report}")
