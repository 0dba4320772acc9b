"""Says how well a recipe does on what it has not seen, by as many runs as there are folds.

    python -m experiments.crossvalidate --recipe=lora --base=runs/quickstart --folds=5 \\
        --data.sources=name=mine,path=examples.jsonl
    python -m experiments.crossvalidate --stage=reward --recipe=pairs --base=runs/small_talk \\
        --data.sources=name=mine,path=pairs.jsonl --data.split=grouped --data.split_field=user

Each fold is held out once, and the others are trained on: a run of its own in RUN_DIR/folds. Of each
the best evaluation counts, by early_stopping.metric. Means and their intervals, which allow for what
the folds' training sets have in common (Nadeau & Bengio 2003), are printed and kept in
RUN_DIR/summary.json. The same command goes on after a kill.
"""

import dataclasses
import json
import pathlib
import sys

import jax
from absl import flags as absl_flags
from rich.console import Console

from experiments import fields, flags, training
from experiments.recipes import STAGES
from experiments.tasks.tuning import Tuning
from experiments.training import Options
from llmjax import evaluation
from llmjax.train.checkpoint import SaveError
from llmjax.train.integrity import DamagedError
from llmjax.train.loop import DivergedError
from llmjax.train.metrics import read_jsonl

RUN_DIR = absl_flags.DEFINE_string("run_dir", None, "Folder of the folds; runs/RECIPE_folds.")
FOLDS = absl_flags.DEFINE_integer("folds", 5, "Runs, each with another part held out.", 2)

_STAGES = ("finetune", "reward", "preference")
STAGE = absl_flags.DEFINE_enum(
    "stage", "finetune", _STAGES, "Whose recipes: the entry point that trains them."
)

# Which fields there are follows from the stage.
flags.define(STAGES[flags.peek("stage", _STAGES, "finetune")])


def main(argv: list[str]) -> None:
    """The entry point."""
    del argv
    recipe = flags.resolve()
    run_dir = pathlib.Path(RUN_DIR.value or f"runs/{recipe.name}_folds")
    options = Options(command=flags.command_line())
    try:
        found = [run_fold(recipe, run_dir, FOLDS.value, i, options) for i in range(FOLDS.value)]
    except (DivergedError, SaveError, DamagedError) as error:
        sys.exit(f"{run_dir}: {error}")
    overlap = evaluation.fold_overlap(FOLDS.value)
    title = f"{recipe.name}: the best {recipe.early_stopping.metric} of each fold"
    Console().print(evaluation.fold_table(found, title=title, overlap=overlap))
    path = run_dir / "summary.json"
    path.write_text(json.dumps(summary(recipe, found), indent=1), "utf-8")
    print(f"summary: {path}")


def run_fold(
    recipe: Tuning, run_dir: pathlib.Path, folds: int, fold: int, options: Options = Options()
) -> dict[str, float]:
    """Trains with a fold held out, or goes on with that, and returns the best evaluation.

    Raises:
        FlagError: the recipe cannot be run so.
    """
    folder = run_dir / "folds" / str(fold)
    print(f"fold {fold + 1} of {folds}: {folder}")
    training.run(fold_recipe(recipe, folds, fold), folder, options)
    jax.clear_caches()  # no other fold runs the same program
    return best_evaluation(recipe, folder)


def fold_recipe(recipe: Tuning, folds: int, fold: int) -> Tuning:
    """The recipe with a fold held out.

    Raises:
        FlagError: the data are prepared already, or cannot be cut so.
    """
    if recipe.data.directory:
        raise flags.FlagError(
            f"--data.directory={recipe.data.directory}: every fold prepares data of its own; leave "
            "it out"
        )
    try:
        data = dataclasses.replace(recipe.data, folds=folds, fold=fold)
    except ValueError as error:
        raise flags.FlagError(str(error)) from error
    return dataclasses.replace(recipe, name=f"{recipe.name}, fold {fold + 1}", data=data)


def best_evaluation(recipe: Tuning, folder: pathlib.Path) -> dict[str, float]:
    """Of those that a run has written down, the watched metric first.

    Raises:
        FlagError: there is none with it.
    """
    watched = recipe.early_stopping
    records = [r for r in read_jsonl(folder / "metrics.jsonl") if r.get(watched.metric) is not None]
    if not records:
        raise flags.FlagError(
            f"{folder}: no evaluation has early_stopping.metric={watched.metric}; choose another"
        )
    choose = min if watched.direction == "min" else max
    best = choose(records, key=lambda record: record[watched.metric])
    # Counts are whole numbers, and no measure of a model.
    kept = {name: x for name, x in best.items() if isinstance(x, float)}
    return {watched.metric: best[watched.metric], **kept}


def summary(recipe: Tuning, found: list[dict[str, float]]) -> dict:
    """What RUN_DIR/summary.json holds: the recipe, each fold, and every metric over all of them."""
    overlap = evaluation.fold_overlap(len(found))
    names = [name for name in found[0] if all(name in fold for fold in found)]
    over = {name: evaluation.summarize([f[name] for f in found], overlap=overlap) for name in names}
    return {
        "metric": recipe.early_stopping.metric,
        "metrics": {name: dataclasses.asdict(of_one) for name, of_one in over.items()},
        "folds": found,
        "recipe": fields.to_json(recipe),
    }


if __name__ == "__main__":
    flags.run(main)
