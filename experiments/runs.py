"""The folder of a run: what is in it, how it is opened, and how a model is read back from it.

RUN_DIR/config.json      the recipe and the versions it ran with
RUN_DIR/data/            tokenizer and shards, unless data.directory names another place
RUN_DIR/checkpoints/     the last ones and the best
RUN_DIR/metrics.jsonl    a line a step, and one an evaluation
RUN_DIR/samples.jsonl    what the model wrote during the run
RUN_DIR/tensorboard/     the same numbers for TensorBoard
RUN_DIR/report.html      all of it on one page, with plots/
RUN_DIR/profile/         traces, with --profile
RUN_DIR/diverged/        the batches that a run stopped at, if it did
"""

import dataclasses
import json
import pathlib
import time
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import jax

from experiments import fields
from experiments.flags import FlagError
from experiments.recipe import Recipe, Training
from experiments.tasks.task import Report, Task
from experiments.versions import versions
from llmjax import data, hf, models, peft
from llmjax import spec as specs
from llmjax.train import integrity

if TYPE_CHECKING:
    from llmjax.train.checkpoint import Checkpointer, Remembering

# What may differ between a run and its continuation: what is seen, how far it goes, and what keeps
# it from going astray.
FREE = {
    "name",
    "mesh",
    "steps",
    "spikes",
    "early_stopping",
    "log_every",
    "log_norms",
    "evaluate_every",
    "evaluate_batches",
    "checkpoint_every",
    "keep_checkpoints",
    "sample_every",
    "sample_prompt",
    "sample_tokens",
    "guards",
}


def saved_recipe(run_dir: pathlib.Path) -> Any:
    """The recipe in a run folder, or None when there is none yet.

    Raises:
        FlagError: config.json is there and is no recipe.
    """
    path = run_dir / "config.json"
    if not path.exists():
        return None
    try:
        saved = json.loads(path.read_text("utf-8"))
        kind = _tasks().KINDS[saved.get("kind", Recipe.__name__)]
        return fields.from_json(kind, saved["recipe"])
    except (ValueError, KeyError, TypeError) as error:
        raise FlagError(f"{path} does not hold a recipe of this version: {error}") from error


def open_run(run_dir: pathlib.Path, recipe: Training, *, resume: bool) -> None:
    """Makes the folder, or checks that it belongs to this recipe; then writes config.json.

    Raises:
        FlagError: it holds a run and `resume` is off, or a run of another recipe.
    """
    before = saved_recipe(run_dir)
    if before is not None and not resume:
        raise FlagError(f"{run_dir} holds a run: go on with --resume, or choose a new --run_dir")
    if before is not None:
        _require_same(run_dir, before, recipe)
        if before.steps != recipe.steps:
            print(
                f"{run_dir}: {before.steps} steps become {recipe.steps}; the "
                f"{recipe.optimizer.schedule} schedule goes by the new number from here on"
            )
    if jax.process_index():
        return  # process 0 writes it
    try:
        run_dir.mkdir(parents=True, exist_ok=True)
        path = run_dir / "config.json"
        written = {
            "kind": type(recipe).__name__,
            "recipe": fields.to_json(recipe),
            "versions": versions(),
            "begun": begun(run_dir) or time.time(),
        }
        partial = path.with_suffix(".tmp")
        partial.write_text(json.dumps(written, indent=1), "utf-8")
        partial.replace(path)
    except OSError as error:
        raise FlagError(f"--run_dir={run_dir}: cannot write there: {error.strerror}") from error


def begun(run_dir: pathlib.Path) -> float | None:
    """When the run in a folder was first started, in seconds since the epoch."""
    path = run_dir / "config.json"
    return json.loads(path.read_text("utf-8")).get("begun") if path.exists() else None


def checkpointer(
    run_dir: pathlib.Path, recipe: Training, remembering: "Mapping[str, Remembering] | None" = None
) -> "Checkpointer":
    """The checkpoints of a run; the best are those of the metric that early stopping watches."""
    from llmjax.train.checkpoint import Checkpointer  # Orbax takes a second to import

    return Checkpointer(
        run_dir / "checkpoints",
        keep_last=max(recipe.keep_checkpoints, 1),
        best_metric=recipe.early_stopping.metric,
        mode=recipe.early_stopping.direction,
        remembering=remembering,
    )


def _require_same(run_dir: pathlib.Path, before: Training, now: Training) -> None:
    if type(before) is not type(now):
        raise FlagError(f"{run_dir} holds a run of another kind: choose a new --run_dir")
    changed = [
        f"{leaf.name} was {fields.get(before, leaf.path)} and is {fields.get(now, leaf.path)}"
        for leaf in fields.leaves(type(now))
        if leaf.path[0] not in FREE and fields.get(before, leaf.path) != fields.get(now, leaf.path)
    ]
    if changed:
        raise FlagError(
            f"{run_dir} holds a run of another recipe: {'; '.join(changed)}. "
            "Go on with the same values, or choose a new --run_dir"
        )


def task_of(recipe: Training, run_dir: pathlib.Path) -> Task:
    """What a run in a folder is to learn.

    Raises:
        FlagError: the recipe names what is not there.
    """
    return _tasks().TASKS[type(recipe)](recipe, run_dir)


def _tasks() -> Any:
    """Imported late: some of them start from the models of other runs."""
    from experiments import tasks

    return tasks


@dataclasses.dataclass(frozen=True)
class TrainedModel:
    """A model read back from a run folder.

    Attributes:
        task: what it was trained for.
        tokenizer: its tokenizer.
        params: all its parameters, as the task's `spec` declares them.
        step: how many steps it was trained for.
    """

    task: Task
    tokenizer: data.Tokenizer
    params: Any
    step: int

    @property
    def recipe(self) -> Any:
        """What it was trained by."""
        return self.task.recipe

    @property
    def config(self) -> models.ModelConfig:
        """The model's."""
        return self.task.config


def saved_task(run_dir: pathlib.Path) -> Task:
    """What the run in a folder learns.

    Raises:
        FlagError: the folder holds no run.
    """
    recipe = saved_recipe(run_dir)
    if recipe is None:
        raise FlagError(f"--run_dir={run_dir}: no run there (it has no config.json)")
    return task_of(recipe, run_dir)


def load(run_dir: pathlib.Path, *, best: bool = True) -> TrainedModel:
    """The model of a run: its best checkpoint by early_stopping.metric, or its last one.

    Raises:
        FlagError: the folder holds no run, or a run without a checkpoint.
    """
    task = saved_task(run_dir)
    with checkpointer(run_dir, task.recipe) as checkpoints:
        found = task.load(checkpoints.restore_best if best else checkpoints.restore_latest)
    if found is None:
        raise FlagError(f"--run_dir={run_dir}: the run has no checkpoint yet")
    return TrainedModel(task, task.tokenizer(), *found)


def fingerprint(run_dir: pathlib.Path, step: int | None = None) -> str:
    """What tells a run's checkpoint apart: by its manifest, which has digests of all files.

    Args:
        run_dir: the folder of the run.
        step: the checkpoint's; None is that of the best.

    Raises:
        FlagError: the folder holds no run, or a run without a checkpoint.
    """
    with checkpointer(run_dir, saved_task(run_dir).recipe) as checkpoints:
        steps = checkpoints.steps()
        if not steps:
            raise FlagError(f"--run_dir={run_dir}: the run has no checkpoint yet")
        best, *_ = checkpoints.ranked(steps) or steps[::-1]
        step = best if step is None else step
        return integrity.digest(checkpoints.directory / str(step), "manifest.json")


def evaluate_model(
    model: TrainedModel, directory: pathlib.Path, batch_size: int | None = None
) -> dict[str, float]:
    """What the model's task says on the validation split of prepared data.

    Args:
        model: from `load`.
        directory: of the data.
        batch_size: rows at a time; by default as in training.

    Raises:
        FlagError: the folder is not prepared, or with another tokenizer.
    """
    return model.task.evaluate(model.params, held_out(model, directory, batch_size))


def report_on(
    model: TrainedModel, directory: pathlib.Path, batch_size: int | None = None
) -> Report | None:
    """What else there is to say, after `evaluate_model` of the same."""
    return model.task.report(model.params, held_out(model, directory, batch_size))


def held_out(model: TrainedModel, directory: pathlib.Path, batch_size: int | None = None) -> Any:
    """The batches of the validation split of prepared data.

    Raises:
        FlagError: as `evaluate_model`.
    """
    try:
        other = data.load_tokenizer(directory)
        batches = model.task.batches("validation", directory=directory, batch_size=batch_size)
    except (OSError, ValueError) as error:
        raise FlagError(str(error)) from error
    if other.fingerprint != model.tokenizer.fingerprint:
        raise FlagError(
            f"{directory} was prepared with another tokenizer than the model's: prepare the text "
            "with the run's own settings"
        )
    return batches


def export(
    model: TrainedModel, output: pathlib.Path, *, part: str | None = None, dtype: str
) -> str:
    """Writes one of the models of a run; `part` None is the one that is wanted.

    Returns:
        The kind of a head that was left out, since the family's checkpoints have no place for it
        (replaced tokens in DeBERTa's), or "".

    Raises:
        FlagError: the run has no such part, or trained what weights cannot hold; the folder has a
            checkpoint already, or the family has no such checkpoints.
    """
    parts = model.task.trained_models(model.params)
    if part is not None and part not in parts:
        raise FlagError(f"--part={part}: a run of {model.recipe.name} has one model; leave it out")
    config, params = parts[part or next(iter(parts))]
    left_out = ""
    head = models.spec(config).get("head", {})
    if not all(param.hf for param in jax.tree.leaves(head, is_leaf=specs.is_param)):
        left_out, config = config.head.kind, models.with_head(config, "none")
        params = {name: node for name, node in params.items() if name != "head"}
    ids, labels = _ids(model), model.task.labels
    try:
        hf.save(output, config, params, dtype=dtype, progress=True, extra=ids, labels=labels)
    except (ValueError, OSError) as error:
        raise FlagError(f"--output={output}: {error}") from error
    return left_out


def export_adapter(model: TrainedModel, output: pathlib.Path, *, dtype: str) -> None:
    """Writes what a run added to its base, as PEFT's `PeftModel.from_pretrained` reads it.

    Raises:
        FlagError: it added nothing, nothing that such files can hold, or the folder has files.
    """
    if (output / peft.files.CONFIG_FILE).exists():
        raise FlagError(f"--output={output}: there is an adapter already; choose another folder")
    model.task.save_adapter(model.params, output, dtype)


def export_tokenizer(model: TrainedModel, output: pathlib.Path) -> None:
    """Puts the tokenizer's files beside a checkpoint, and how the model is spoken to."""
    hf.copy_tokenizer(model.task.directory(), output)
    model.tokenizer.save(output)
    if (template := model.task.template) is not None and model.config.head.kind == "lm":
        (output / "chat_template.jinja").write_text(template.standalone, "utf-8")


def _ids(model: TrainedModel) -> dict[str, Any]:
    """The special tokens, by the names that config.json has for them; eos is what ends a turn."""
    names = ("pad", "bos", "eos")
    ids = {f"{name}_token_id": getattr(model.tokenizer, f"{name}_id") for name in names}
    if model.config.head.kind != "lm" or model.task.template is None:
        return ids
    stops = model.task.template.stop_ids
    return ids | {"eos_token_id": stops[0] if len(stops) == 1 else list(stops)}
