"""The folder of a run: its contents, how it is opened, and how a model is loaded from it.

RUN_DIR/config.json      the recipe and the versions it ran with
RUN_DIR/data/            tokenizer and shards, unless data.directory names another folder
RUN_DIR/checkpoints/     the last ones and the best
RUN_DIR/metrics.jsonl    a line per step and per evaluation
RUN_DIR/samples.jsonl    text that the model generated during the run
RUN_DIR/tensorboard/     the same metrics for TensorBoard
RUN_DIR/report.html      all of it on one page, with plots/
RUN_DIR/profile/         traces, with --profile
RUN_DIR/diverged/        the last batches of a run that diverged
"""

import contextlib
import dataclasses
import json
import pathlib
import time
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

import jax

from experiments import fields
from experiments.flags import FlagError
from experiments.recipe import Recipe, Training
from experiments.tasks.task import Report, Task
from experiments.versions import versions
from llmjax import data, hf, models, peft
from llmjax import spec as specs
from llmjax.data.hub_tokenizer import GENERATION_FILE
from llmjax.train import integrity

if TYPE_CHECKING:
    from llmjax.train.checkpoint import Checkpointer, Remembering

# Fields that may change when a run is resumed: logging, length, and safeguards.
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
    """The recipe in a run folder, or None if there is none yet.

    Raises:
        FlagError: config.json exists but is not a recipe.
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


@contextlib.contextmanager
def opened(run_dir: pathlib.Path, recipe: Training, *, resume: bool) -> Iterator[None]:
    """Opens a run, for as long as it is prepared and trains (`open_run`).

    A new run that an error ends before its first record or checkpoint, such as one whose text is
    missing or whose memory is exhausted, is forgotten: its folder takes other settings.
    """
    new = saved_recipe(run_dir) is None
    open_run(run_dir, recipe, resume=resume)
    try:
        yield
    except BaseException:
        metrics = run_dir / "metrics.jsonl"
        recorded = metrics.exists() and metrics.stat().st_size > 0
        if new and not recorded and not any((run_dir / "checkpoints").glob("[0-9]*")):
            (run_dir / "config.json").unlink(missing_ok=True)
        raise


def open_run(run_dir: pathlib.Path, recipe: Training, *, resume: bool) -> None:
    """Creates the folder, or checks that it belongs to this recipe; then writes config.json.

    Raises:
        FlagError: it holds a run and `resume` is off, or a run of another recipe.
    """
    before = saved_recipe(run_dir)
    if before is not None and not resume and jax.process_index() == 0:  # others see what it wrote
        raise FlagError(f"{run_dir} holds a run: continue it with --resume, or use a new --run_dir")
    if before is not None:
        _require_same(run_dir, before, recipe)
        if before.steps != recipe.steps:
            print(_about_steps(run_dir, before, recipe))
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
        raise FlagError(f"--run_dir={run_dir}: cannot be written: {error.strerror}") from error


def _about_steps(run_dir: pathlib.Path, before: Training, now: Any) -> str:
    """What a new number of steps changes in a run."""
    said = (
        f"{run_dir}: {before.steps} steps become {now.steps}; from here on, the "
        f"{now.optimizer.schedule} schedule uses the new number"
    )
    if now.data.mixture.max_epochs:
        said += (
            ", and so do the shares of sources (data.mixture.max_epochs): of a source whose share "
            "changes, examples are read again or left out"
        )
    return said


def begun(run_dir: pathlib.Path) -> float | None:
    """When the run in a folder was first started, in seconds since the epoch."""
    path = run_dir / "config.json"
    return json.loads(path.read_text("utf-8")).get("begun") if path.exists() else None


def checkpointer(
    run_dir: pathlib.Path, recipe: Training, remembering: "Mapping[str, Remembering] | None" = None
) -> "Checkpointer":
    """The checkpoints of a run; the best are determined by early stopping's metric."""
    from llmjax.train.checkpoint import Checkpointer  # Orbax takes a second to import

    return Checkpointer(
        run_dir / "checkpoints",
        keep_last=recipe.keep_checkpoints,
        best_metric=recipe.early_stopping.metric,
        mode=recipe.early_stopping.direction,
        remembering=remembering,
    )


def _require_same(run_dir: pathlib.Path, before: Training, now: Training) -> None:
    if type(before) is not type(now):
        raise FlagError(f"{run_dir} holds a run of another kind: use a new --run_dir")
    changed = [
        f"{leaf.name} was {fields.get(before, leaf.path)} and is {fields.get(now, leaf.path)}"
        for leaf in fields.leaves(type(now))
        if leaf.path[0] not in FREE and fields.get(before, leaf.path) != fields.get(now, leaf.path)
    ]
    if changed:
        raise FlagError(
            f"{run_dir} holds a run of another recipe: {'; '.join(changed)}. "
            "Use the same values, or a new --run_dir"
        )


def task_of(recipe: Training, run_dir: pathlib.Path) -> Task:
    """The task of a run in a folder.

    Raises:
        FlagError: the recipe names something that does not exist.
    """
    return _tasks().TASKS[type(recipe)](recipe, run_dir)


def _tasks() -> Any:
    """The module of tasks; imported late, as tasks load the models of other runs."""
    from experiments import tasks

    return tasks


@dataclasses.dataclass(frozen=True)
class TrainedModel:
    """A model loaded from a run folder.

    Attributes:
        task: the task it was trained for.
        tokenizer: its tokenizer.
        params: all its parameters, as declared by the task's `spec`.
        step: the number of training steps.
    """

    task: Task
    tokenizer: data.Tokenizer
    params: Any
    step: int

    @property
    def recipe(self) -> Any:
        """The recipe it was trained with."""
        return self.task.recipe

    @property
    def config(self) -> models.ModelConfig:
        """The model configuration."""
        return self.task.config


def saved_task(run_dir: pathlib.Path) -> Task:
    """The task of the run in a folder.

    Raises:
        FlagError: the folder holds no run.
    """
    recipe = saved_recipe(run_dir)
    if recipe is None:
        raise FlagError(f"{run_dir}: not the folder of a run (it has no config.json)")
    return task_of(recipe, run_dir)


def load(run_dir: pathlib.Path, *, best: bool = True) -> TrainedModel:
    """Loads the model of a run: its best checkpoint by early_stopping.metric, or its last one.

    Raises:
        FlagError: the folder holds no run, or a run without a checkpoint that is sound and fits.
    """
    task = saved_task(run_dir)
    try:
        with checkpointer(run_dir, task.recipe) as checkpoints:
            found = task.load(checkpoints.restore_best if best else checkpoints.restore_latest)
    except ValueError as error:  # such as DamagedError
        raise FlagError(str(error)) from error
    if found is None:
        raise FlagError(f"{run_dir}: the run has no checkpoint yet")
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
            raise FlagError(f"{run_dir}: the run has no checkpoint yet")
        best, *_ = checkpoints.ranked(steps) or steps[::-1]
        step = best if step is None else step
        return integrity.digest(checkpoints.directory / str(step), "manifest.json")


def evaluate_model(
    model: TrainedModel, directory: pathlib.Path, batch_size: int | None = None
) -> dict[str, float]:
    """Evaluates a model's task on the validation split of prepared data.

    Args:
        model: from `load`.
        directory: folder of the data.
        batch_size: rows at a time; by default as in training.

    Raises:
        FlagError: the folder was not prepared, or with another tokenizer; there is nothing to
            evaluate; or the rows do not divide over the devices.
    """
    batches = held_out(model, directory, batch_size)
    try:
        return model.task.evaluate(model.params, batches)
    except ValueError as error:
        raise FlagError(str(error)) from error


def report_on(
    model: TrainedModel, directory: pathlib.Path, batch_size: int | None = None
) -> Report | None:
    """The task's further report, after `evaluate_model` with the same arguments."""
    return model.task.report(model.params, held_out(model, directory, batch_size))


def held_out(model: TrainedModel, directory: pathlib.Path, batch_size: int | None = None) -> Any:
    """The batches of the validation split of prepared data.

    Raises:
        FlagError: as in `evaluate_model`.
    """
    try:
        other = data.load_tokenizer(directory)
        batches = model.task.batches("validation", directory=directory, batch_size=batch_size)
    except (OSError, ValueError) as error:
        raise FlagError(str(error)) from error
    if other.fingerprint != model.tokenizer.fingerprint:
        raise FlagError(
            f"{directory} was not prepared with the model's tokenizer: prepare the text with the "
            "run's own settings"
        )
    return batches


def export(
    model: TrainedModel, output: pathlib.Path, *, part: str | None = None, dtype: str
) -> str:
    """Exports one of the models of a run; `part` None selects the main one.

    Returns:
        The kind of a head that was left out because the family's checkpoints cannot hold it
        (replaced-token detection in DeBERTa), or "".

    Raises:
        FlagError: the run has no such part, or has parameters that cannot be merged into weights;
            the folder already has a checkpoint; or the family has no such checkpoints.
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
    """Exports the adapter of a run for PEFT's `PeftModel.from_pretrained`.

    Raises:
        FlagError: the run has no adapter, or one that the format cannot hold, or the folder already
            has an adapter.
    """
    if (output / peft.files.CONFIG_FILE).exists():
        raise FlagError(f"--output={output}: it already has an adapter; choose another folder")
    model.task.save_adapter(model.params, output, dtype)


def export_tokenizer(model: TrainedModel, output: pathlib.Path) -> None:
    """Writes the tokenizer's files, the chat template and its stops next to a checkpoint."""
    hf.copy_tokenizer(model.task.directory(), output)
    model.tokenizer.save(output)
    if (template := model.task.template) is not None and model.config.head.kind == "lm":
        (output / "chat_template.jinja").write_text(template.standalone, "utf-8")
    generation = output / GENERATION_FILE
    if generation.exists():  # the base's, whose turns may end otherwise
        settings = json.loads(generation.read_text("utf-8")) | _ids(model)
        generation.write_text(json.dumps(settings, indent=2) + "\n", "utf-8")


def _ids(model: TrainedModel) -> dict[str, Any]:
    """The special tokens, by their names in config.json; eos is the token that ends a turn."""
    names = ("pad", "bos", "eos")
    ids = {f"{name}_token_id": getattr(model.tokenizer, f"{name}_id") for name in names}
    if model.config.head.kind != "lm" or model.task.template is None:
        return ids
    stops = model.task.template.stop_ids
    return ids | {"eos_token_id": stops[0] if len(stops) == 1 else list(stops)}
