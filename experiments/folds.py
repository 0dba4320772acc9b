"""A cross-validation in a folder: each fold of the examples is held out by one run.

RUN_DIR/folds/N/        a run folder for each fold (`experiments.runs`), including its data
RUN_DIR/summary.json    statistics of the best evaluations of all folds
"""

import dataclasses
import pathlib

import jax

from experiments import fields, flags, training
from experiments.tasks.tuning import Tuning
from experiments.training import Options
from llmjax import evaluation
from llmjax.train.metrics import read_jsonl


def run_fold(
    recipe: Tuning, run_dir: pathlib.Path, folds: int, fold: int, options: Options
) -> dict[str, float]:
    """Trains with a fold held out, or resumes that run, and returns the best evaluation.

    Raises:
        FlagError: the recipe cannot be cross-validated.
    """
    folder = run_dir / "folds" / str(fold)
    print(f"fold {fold + 1} of {folds}: {folder}")
    training.run(fold_recipe(recipe, folds, fold), folder, options)
    jax.clear_caches()  # folds do not share programs
    return best_evaluation(recipe, folder)


def fold_recipe(recipe: Tuning, folds: int, fold: int) -> Tuning:
    """The recipe with a fold held out.

    Raises:
        FlagError: the data are already prepared, or cannot be split.
    """
    if recipe.data.directory:
        raise flags.FlagError(
            f"--data.directory={recipe.data.directory}: every fold prepares its own data; leave "
            "it out"
        )
    try:
        data = dataclasses.replace(recipe.data, folds=folds, fold=fold)
    except ValueError as error:
        raise flags.FlagError(str(error)) from error
    return dataclasses.replace(recipe, name=f"{recipe.name}, fold {fold + 1}", data=data)


def best_evaluation(recipe: Tuning, folder: pathlib.Path) -> dict[str, float]:
    """The best recorded evaluation of a run, with the watched metric first.

    Raises:
        FlagError: no evaluation has that metric.
    """
    watched = recipe.early_stopping
    best = watched.best_of(read_jsonl(folder / "metrics.jsonl"))
    if best is None:
        raise flags.FlagError(
            f"{folder}: no evaluation has early_stopping.metric={watched.metric}; choose another"
        )
    # Integers are counts, not metrics of a model.
    kept = {name: x for name, x in best.items() if isinstance(x, float)}
    return {watched.metric: best[watched.metric], **kept}


def summary(recipe: Tuning, found: list[dict[str, float]]) -> dict:
    """The contents of RUN_DIR/summary.json: the recipe, each fold, and statistics of metrics."""
    overlap = evaluation.fold_overlap(len(found))
    names = [name for name in found[0] if all(name in fold for fold in found)]
    over = {name: evaluation.summarize([f[name] for f in found], overlap=overlap) for name in names}
    return {
        "metric": recipe.early_stopping.metric,
        "metrics": {name: dataclasses.asdict(of_one) for name, of_one in over.items()},
        "folds": found,
        "recipe": fields.to_json(recipe),
    }
