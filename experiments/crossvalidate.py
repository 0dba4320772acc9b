r"""Cross-validates a recipe: one run per fold, each evaluated on the held-out fold.

    python -m experiments.crossvalidate --recipe=lora --base=runs/quickstart --folds=5 \
        --data.sources=name=mine,path=examples.jsonl
    python -m experiments.crossvalidate --stage=reward --recipe=pairs --base=runs/small_talk \
        --data.sources=name=mine,path=pairs.jsonl --data.split=grouped --data.split_field=user

Each fold is held out by one run in RUN_DIR/folds, which trains on the others. The best evaluation
of each run counts, by early_stopping.metric. Means and their intervals, corrected for the overlap
of the training sets (Nadeau & Bengio 2003), are printed and written to RUN_DIR/summary.json. After
a kill, run the same command to continue.
"""

import json
import pathlib
import sys

from absl import flags as absl_flags
from rich.console import Console

from experiments import flags, folds
from experiments.recipes import STAGES
from experiments.training import Options
from llmjax import evaluation
from llmjax.train.checkpoint import SaveError
from llmjax.train.integrity import DamagedError
from llmjax.train.loop import DivergedError

RUN_DIR = absl_flags.DEFINE_string(
    "run_dir", None, "Folder of the folds; by default runs/RECIPE_folds."
)
FOLDS = absl_flags.DEFINE_integer("folds", 5, "Number of folds, and of runs.", 2)

_STAGES = ("finetune", "reward", "preference")
STAGE = absl_flags.DEFINE_enum(
    "stage", "finetune", _STAGES, "Entry point whose recipes are trained."
)

# The stage determines the fields.
flags.define(STAGES[flags.peek("stage", _STAGES, "finetune")])


def main(argv: list[str]) -> None:
    """The entry point."""
    del argv
    recipe = flags.resolve()
    run_dir = pathlib.Path(RUN_DIR.value or f"runs/{recipe.name}_folds")
    options = Options(command=flags.command_line())
    try:
        found = [
            folds.run_fold(recipe, run_dir, FOLDS.value, i, options) for i in range(FOLDS.value)
        ]
    except (DivergedError, SaveError, DamagedError) as error:
        sys.exit(f"{run_dir}: {error}")
    overlap = evaluation.fold_overlap(FOLDS.value)
    title = f"{recipe.name}: the best {recipe.early_stopping.metric} of each fold"
    shown = [{n.removeprefix("validation_"): x for n, x in fold.items()} for fold in found]
    Console().print(evaluation.fold_table(shown, title=title, overlap=overlap))
    path = run_dir / "summary.json"
    path.write_text(json.dumps(folds.summary(recipe, found), indent=1), "utf-8")
    print(f"summary: {path}")


if __name__ == "__main__":
    flags.run(main)
