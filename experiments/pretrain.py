"""Pretrains a language model: a decoder by the next token, or an encoder.

    python -m experiments.pretrain --recipe=tiny --run_dir=runs/tiny
    python -m experiments.pretrain --recipe=modernbert_tiny --run_dir=runs/modernbert_tiny
    python -m experiments.pretrain --recipe=deberta_tiny --run_dir=runs/deberta_tiny
    python -m experiments.pretrain --recipe=gpt2_small --data.sources=name=web,path=/data/web

The recipe's objective is clm, mlm (tokens are hidden: BERT) or rtd (tokens are replaced: ELECTRA).
Prepares the recipe's text if that is not done, trains, evaluates, writes samples (clm), and ends
with RUN_DIR/report.html. Run the same command again after a kill: it goes on from the last
checkpoint and arrives at the same parameters, byte for byte, as a run never interrupted. On SIGTERM
or Ctrl-C it saves, says how to go on, and exits with 0.
"""

import pathlib
import sys

from absl import flags as absl_flags

from experiments import flags, processes, runs, training
from experiments.recipes import RECIPES
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

flags.define(RECIPES)


def main(argv: list[str]) -> None:
    """The entry point."""
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


if __name__ == "__main__":
    flags.run(main)
