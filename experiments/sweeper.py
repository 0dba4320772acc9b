"""A sweep over a recipe's settings: each trial is a run, in a study that survives restarts.

RUN_DIR/study.db      Optuna's study: the trials and their results
RUN_DIR/data/         tokenizer and shards, shared by all trials that can share them
RUN_DIR/trials/N/     a run folder for each trial (`experiments.runs`)
RUN_DIR/sweep.html    the report

A killed trial resumes from its checkpoint when the sweep is started again.
"""

import contextlib
import dataclasses
import fcntl
import math
import pathlib
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any, Literal

import jax

from experiments import fields, search_space
from experiments.flags import FlagError
from experiments.search_space import Dimension
from experiments.training import Options
from experiments.training import run as train_run
from llmjax.train.early_stopping import EarlyStoppingConfig
from llmjax.train.loop import DivergedError, Pause
from llmjax.train.metrics import is_evaluation, read_jsonl

if TYPE_CHECKING:
    import optuna

Pruner = Literal["median", "hyperband", "none"]
Train = Callable[[Any, pathlib.Path, Options], Any]

MAX_FAILURES = 3  # consecutive invalid recipes, after which the search space is to blame


@dataclasses.dataclass(frozen=True)
class Trial:
    """The result of one set of values.

    Attributes:
        number: the name of its folder.
        values: values by field.
        state: complete, pruned or failed.
        value: the best value of the metric; NaN if it was never evaluated.
        steps: the steps of its evaluations.
        curve: the metric at each of these steps.
        note: why it has no value, or "".
    """

    number: int
    values: dict[str, search_space.Value]
    state: Literal["complete", "pruned", "failed"]
    value: float
    steps: tuple[int, ...]
    curve: tuple[float, ...]
    note: str = ""


@dataclasses.dataclass(frozen=True)
class Sweep:
    """A sweep in a folder.

    Attributes:
        recipe: the base recipe, whose early_stopping names the metric.
        space: the fields to search.
        run_dir: the folder.
        pruner: how trials are pruned.
        options: options of each run.
        train: runs a trial.
    """

    recipe: Any  # of any stage
    space: tuple[Dimension, ...]
    run_dir: pathlib.Path
    pruner: Pruner = "median"
    options: Options = Options()
    train: Train = train_run

    def __post_init__(self) -> None:
        every = self.recipe.evaluate_every
        if self.pruner != "none" and not 0 < every < self.recipe.steps:
            raise FlagError(
                f"--pruner={self.pruner} compares evaluations during the runs, but "
                f"evaluate_every={every} makes none before the end: set it to fewer steps than "
                f"the {self.recipe.steps} of a run, or use --pruner=none"
            )

    @property
    def data_directory(self) -> pathlib.Path | None:
        """The data folder shared by all trials; None if each prepares its own.

        The latter is the case if a field is searched that determines the prepared data.
        """
        if any(d.leaf.path[0] in self.recipe.prepared_from for d in self.space):
            return None
        return pathlib.Path(self.recipe.data.directory or self.run_dir / "data")

    @property
    def watched(self) -> EarlyStoppingConfig:
        """The metric, and whether lower or higher is better."""
        return self.recipe.early_stopping

    def run(self, trials: int) -> list[Trial]:
        """Runs trials until `trials` are finished, including those of earlier calls.

        Returns:
            All trials, best first; those without a value last.

        Raises:
            FlagError: the folder has another sweep or is in use, Optuna is missing, or recipes
                cannot run.
        """
        optuna = require_optuna()
        self.run_dir.mkdir(parents=True, exist_ok=True)
        with _locked(self.run_dir):
            study = self._study()
            _requeue(study)
            failures = 0
            while (number := len(self.finished(study))) < trials:
                seed = 1000 * self.recipe.seed + number
                study.sampler = optuna.samplers.TPESampler(seed=seed)
                trial = study.ask()
                failures = 0 if self._try(study, trial, number) else failures + 1
                if failures == MAX_FAILURES:
                    note = study.trials[-1].user_attrs["note"]
                    raise FlagError(f"{failures} trials in a row could not run, the last: {note}")
            return self.finished(study)

    def finished(self, study: "optuna.Study") -> list[Trial]:
        """The finished trials of a study, best first."""
        names = {"COMPLETE": "complete", "PRUNED": "pruned", "FAIL": "failed"}
        sign = 1 if self.watched.direction == "min" else -1
        found = []
        for trial in study.trials:
            note = trial.user_attrs.get("note", "")
            if trial.state.name not in names or (trial.state.name == "FAIL" and not note):
                continue  # running, or killed and requeued
            steps = tuple(sorted(trial.intermediate_values))
            curve = tuple(trial.intermediate_values[step] for step in steps)
            number, value = trial.user_attrs["folder"], trial.user_attrs.get("best", math.nan)
            state: Any = names[trial.state.name]
            found.append(Trial(number, dict(trial.params), state, value, steps, curve, note))
        return sorted(found, key=lambda t: (math.isnan(t.value), sign * t.value))

    def recipe_of(self, values: dict[str, search_space.Value], number: int) -> Any:
        """The recipe of a trial.

        Raises:
            ValueError: the values do not fit together.
        """
        name = f"{self.recipe.name}, trial {number}"
        found = search_space.apply(self.recipe, self.space, values)
        found = dataclasses.replace(found, name=name)
        if self.data_directory is None:
            return found
        data = dataclasses.replace(found.data, directory=str(self.data_directory))
        return dataclasses.replace(found, data=data)

    def _try(self, study: "optuna.Study", trial: "optuna.Trial", number: int) -> bool:
        """Runs a trial and reports to the study; False if it could not run."""
        state = require_optuna().trial.TrialState
        number = trial.user_attrs.get("folder", number)  # a killed trial keeps its number
        trial.set_user_attr("folder", number)
        values = {dimension.name: dimension.suggest(trial) for dimension in self.space}
        folder = self.run_dir / "trials" / str(number)
        pruned = False
        before = self._evaluations(folder)  # of a killed trial
        for step, value in before.items():
            trial.report(value, step)

        def watch(pause: Pause) -> bool:
            nonlocal pruned
            if pause.step not in before:
                trial.report(pause.metrics[self.watched.metric], pause.step)
            pruned = self.pruner != "none" and trial.should_prune()
            return pruned

        print(f"trial {number}: {', '.join(f'{n}={show(value)}' for n, value in values.items())}")
        try:
            recipe = self.recipe_of(values, number)
            self.train(recipe, folder, dataclasses.replace(self.options, watch=watch))
        except DivergedError as error:
            trial.set_user_attr("note", f"diverged: {error}")
            pruned = True
        except ValueError as error:  # such as FlagError
            print(f"trial {number} cannot run: {error}")
            trial.set_user_attr("note", str(error))
            study.tell(trial, state=state.FAIL)
            return False
        finally:
            jax.clear_caches()  # trials do not share programs
        best = self._best(folder)
        if best is not None:
            trial.set_user_attr("best", best)
        if pruned or best is None:
            study.tell(trial, state=state.PRUNED)
        else:
            study.tell(trial, best)
        return True

    def _best(self, folder: pathlib.Path) -> float | None:
        """The best recorded evaluation of a run."""
        best = self.watched.best_of(_records(folder))
        return None if best is None else float(best[self.watched.metric])

    def _evaluations(self, folder: pathlib.Path) -> dict[int, float]:
        """The metric in the recorded evaluations of a run, by step."""
        records = filter(is_evaluation, _records(folder))
        found = {record["step"]: record.get(self.watched.metric) for record in records}
        return {step: float(x) for step, x in found.items() if isinstance(x, int | float)}

    def _study(self) -> "optuna.Study":
        """The study of the folder, or a new one.

        Raises:
            FlagError: the folder has a study with other settings.
        """
        optuna = require_optuna()
        study = optuna.create_study(
            study_name="sweep",
            storage=f"sqlite:///{(self.run_dir / 'study.db').resolve()}",
            direction={"min": "minimize", "max": "maximize"}[self.watched.direction],
            pruner=self._pruner(),
            load_if_exists=True,
        )
        described = {
            "recipe": fields.to_json(self.recipe),
            "space": {d.name: _describe(d) for d in self.space},
        }
        before = study.user_attrs.get("sweep")
        if before is None:
            study.set_user_attr("sweep", described)
        elif before != described:
            changed = sorted(_different(before, described))
            raise FlagError(
                f"--run_dir={self.run_dir} holds a sweep with other settings ({', '.join(changed)})"
                ": use the same settings, or a new folder"
            )
        return study

    def _pruner(self) -> Any:
        pruners = require_optuna().pruners
        if self.pruner == "median":
            return pruners.MedianPruner()
        if self.pruner == "hyperband":
            return pruners.HyperbandPruner(
                min_resource=self.recipe.evaluate_every, max_resource=self.recipe.steps
            )
        return pruners.NopPruner()


def _records(folder: pathlib.Path) -> list[dict[str, Any]]:
    path = folder / "metrics.jsonl"
    return read_jsonl(path) if path.exists() else []


def require_optuna() -> Any:
    """The Optuna module, with reduced logging.

    Raises:
        FlagError: it is not installed.
    """
    try:
        import optuna
    except ModuleNotFoundError:
        raise FlagError("a sweep needs Optuna: pip install 'llmjax[sweep]'") from None
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    return optuna


@contextlib.contextmanager
def _locked(run_dir: pathlib.Path) -> Iterator[None]:
    """Allows one process at a time: another would mistake the running trial for a killed one."""
    with (run_dir / "study.lock").open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise FlagError(f"--run_dir={run_dir}: a sweep is running there") from None
        yield


def _requeue(study: "optuna.Study") -> None:
    """Requeues trials that were running when their process ended, in their own folders."""
    state = require_optuna().trial.TrialState
    for trial in study.get_trials(states=(state.RUNNING,)):
        if "folder" in trial.user_attrs:
            study.enqueue_trial(trial.params, user_attrs=trial.user_attrs)
        study.tell(trial.number, state=state.FAIL)


def _describe(dimension: Dimension) -> dict[str, Any]:
    """A dimension's values, as JSON."""
    names = [f.name for f in dataclasses.fields(dimension) if f.name != "leaf"]
    return {name: fields.to_json(getattr(dimension, name)) for name in names}


def _different(before: Any, now: Any, name: str = "") -> Iterator[str]:
    """The dotted names of differences."""
    if isinstance(before, dict) and isinstance(now, dict):
        for key in before.keys() | now.keys():
            yield from _different(before.get(key), now.get(key), f"{name}.{key}" if name else key)
    elif before != now:
        yield name


def show(value: search_space.Value) -> str:
    """A value with few digits."""
    return f"{value:.4g}" if isinstance(value, float) else str(value)
