"""A training run, from a recipe to a report."""

import contextlib
import dataclasses
import functools
import itertools
import pathlib
import time
from collections.abc import Callable
from typing import Any

import jax

from experiments import fields, processes, runs
from experiments.flags import FlagError
from experiments.recipe import Training
from experiments.tasks.task import Record, Task
from llmjax import data, optim, train
from llmjax.train import metrics, telemetry
from llmjax.train.checkpoint import Checkpointer, Remembering
from llmjax.train.early_stopping import EarlyStopping, SaveBest
from llmjax.train.loop import DivergedError, Every, Hook, Pause, fit, save_batches
from llmjax.train.preemption import SaveOnSignal
from llmjax.train.progress import Progress
from llmjax.train.report import write_report
from llmjax.train.watchdog import Watchdog


@dataclasses.dataclass(frozen=True)
class Options:
    """Options of a run that do not change what it learns, except that it may end earlier.

    Attributes:
        resume: whether to resume an existing run. If false, a folder with a run is an error.
        hang_seconds: the process ends if no step or evaluation batch completes for this long; 0
            waits forever.
        profile: the first and the last step to trace, or None.
        wandb: Weights & Biases project to log metrics to, or "".
        command: the command line that resumes the run, printed when a signal ends it.
        watch: called after each evaluation, with its metrics in the pause; True ends the run.
    """

    resume: bool = True
    hang_seconds: float = 0.0
    profile: tuple[int, int] | None = None
    wandb: str = ""
    command: str = ""
    watch: Callable[[Pause], bool] | None = None


def run(recipe: Training, run_dir: pathlib.Path, options: Options = Options()) -> pathlib.Path:
    """Trains a recipe's model in a folder and returns the path of its report.

    Args:
        recipe: the run.
        run_dir: its folder; see `experiments.runs`.
        options: options of the run.

    Raises:
        flags.FlagError: the recipe, the folder, the text and the devices do not fit together.
        DivergedError: too many consecutive steps were skipped; their batches are in the folder.
    """
    task = runs.task_of(recipe, run_dir)
    try:
        optim.make(recipe.optimizer, task.trained_spec, recipe.steps)
        if options.wandb:
            metrics.require_wandb()
    except (ValueError, ModuleNotFoundError) as error:
        raise FlagError(str(error)) from error
    made_mesh = task.make_mesh()
    with contextlib.ExitStack() as stack:
        opened = runs.opened(run_dir, recipe, resume=options.resume)
        processes.first(lambda: stack.enter_context(opened))
        processes.first(task.prepare)
        stack.enter_context(jax.set_mesh(made_mesh))
        _train(_Run(task, options), stack)
    return run_dir / "report.html" if jax.process_index() else write_report(run_dir)


def _train(run: "_Run", stack: contextlib.ExitStack) -> None:
    """Restores or starts a run, and trains to the last step; `stack` closes resources."""
    stack.callback(train.trim_after_compiling())
    task, recipe = run.task, run.recipe
    spec = task.trained_spec
    optimizer = optim.make(recipe.optimizer, spec, recipe.steps)
    batches: Any = run.batches("train")
    remembering: dict[str, Remembering] = {
        "early_stopping": run.early_stopping,
        "goodput": run.goodput,
        **task.remembering(),
    }
    checkpoints = stack.enter_context(runs.checkpointer(run.run_dir, recipe, remembering))
    abstract = train.abstract_state(spec, optimizer)
    restored = checkpoints.restore_latest(abstract, set_aside=True)
    state = task.start(optimizer) if restored is None else task.go_on(restored.state)
    if restored is not None:
        batches.set_state(restored.data)
    start = int(state.step)
    if start >= recipe.steps:
        print(f"{run.run_dir}: all {recipe.steps} steps are done; raise --steps to continue")
        return
    if run.ended(start):
        return
    step = train.make_step(
        task.make_loss(),
        optimizer,
        accumulate=recipe.accumulate,
        spikes=recipe.spikes,
        norms=recipe.log_norms,
        sharding=train.Sharding(
            spec, task.config.compute_dtype, recipe.mesh.zero, task.frozen_spec
        ),
    )
    run.rehearse(state.all_params)
    hooks = run.hooks(checkpoints, start, stack, batches)
    task.ready(batches, state, run.record)
    if run.ended(start):
        return
    try:
        end = fit(state, step, batches, steps=recipe.steps, hooks=hooks)
    except DivergedError as error:
        where = save_batches(error.batches, run.run_dir / "diverged")
        raise DivergedError(f"{error}: {where}", error.batches) from None
    checkpoints.wait()  # while signals are handled: they must not end the process before
    run.ended(int(end.step))


class _Run:
    """State shared by the hooks of a run."""

    def __init__(self, task: Task, options: Options) -> None:
        self.task, self.options = task, options
        self.recipe, self.run_dir = task.recipe, task.run_dir
        self.early_stopping = EarlyStopping(self.recipe.early_stopping)
        self.record: Record = lambda step, found: None
        self.goodput = telemetry.Goodput(runs.begun(self.run_dir) or time.time())

    def batches(self, split: data.SplitName) -> Any:
        """An iterator over the batches of a split.

        Raises:
            FlagError: the prepared data do not fit the recipe.
        """
        try:
            return iter(self.task.batches(split))
        except ValueError as error:
            raise FlagError(str(error)) from error

    def rehearse(self, params: Any) -> None:
        """Finds before the first step what the first evaluation would only find hours later.

        Raises:
            FlagError: there is nothing to evaluate, or evaluations lack early stopping's metric.
        """
        watched = self.recipe.early_stopping
        batches = itertools.islice(self.batches("validation"), 1)
        try:
            if watched.metric != type(self.recipe).early_stopping.metric:  # which all have
                watched.require_metric(self.task.evaluate(params, batches))
        except ValueError as error:
            raise FlagError(str(error)) from error

    def hooks(
        self, checkpoints: Checkpointer, start: int, stack: contextlib.ExitStack, batches: Any
    ) -> list[Hook]:
        """The hooks of a run that starts after a step, in the order of their calls."""
        recipe, options = self.recipe, self.options
        progress = stack.enter_context(Progress(recipe.steps, start=start, title=recipe.name))
        recorder = self.recorder(progress, start, stack)
        self.record = lambda step, found: recorder.write({"step": step, **found})
        seconds, index = options.hang_seconds or None, jax.process_index()
        name = f"watchdog.{index}.txt" if jax.process_count() > 1 else "watchdog.txt"
        watchdog = stack.enter_context(Watchdog(seconds, self.run_dir, name=name))
        preemption = SaveOnSignal(checkpoints, options.command)
        stack.callback(preemption.restore_handlers)
        samples = None
        if index == 0:
            samples = metrics.JsonlWriter(self.run_dir / "samples.jsonl", step=start)
            stack.enter_context(samples)
        hooks: list[Hook] = [recorder, watchdog]
        if options.profile:
            folder = self.run_dir / "profile"
            try:
                profiler = telemetry.Profiler(options.profile, folder, start=start)
            except ValueError as error:
                raise FlagError(f"--profile={error}") from error
            stack.callback(profiler.close)
            hooks.append(profiler)

        def every(interval: int, hook: Callable[[Pause], bool | None]) -> Every:
            return Every(interval, hook, last=recipe.steps)

        def evaluate(pause: Pause) -> bool:
            self.evaluate(pause, recorder, watchdog)
            ends = self.early_stopping(pause)
            return bool(options.watch and options.watch(pause)) or ends

        hooks.append(every(recipe.evaluate_every, evaluate))
        if self.task.sample_every is not None:
            write = functools.partial(self.sample, progress=progress, samples=samples)
            hooks.append(every(self.task.sample_every, write))
        hooks += self.task.hooks(batches, self.record)
        hooks.append(every(recipe.checkpoint_every, checkpoints))
        if recipe.early_stopping.patience:
            hooks.append(Every(recipe.evaluate_every, SaveBest(self.early_stopping, checkpoints)))
        return [*hooks, preemption]

    def ended(self, step: int) -> bool:
        """Whether early stopping or the task has ended the run at a step; prints why."""
        if why := self.task.ended():
            print(f"{self.run_dir}: ended at step {step}: {why}")
        found = self.early_stopping
        if found.stopped:
            print(
                f"{self.run_dir}: stopped early at step {step}; the best {found.config.metric} was "
                f"{found.best} at step {found.best_step}, which evaluation and export use. Raise "
                "--early_stopping.patience to continue"
            )
        return found.stopped or why != ""

    def recorder(
        self, progress: Progress, start: int, stack: contextlib.ExitStack
    ) -> metrics.Recorder:
        """The hook that writes metrics.jsonl and TensorBoard files and feeds the display."""
        if jax.process_index():
            return metrics.Recorder([])
        lines = stack.enter_context(metrics.JsonlWriter(self.run_dir / "metrics.jsonl", step=start))
        board = metrics.TensorBoardWriter(self.run_dir / "tensorboard", step=start)
        stack.callback(board.close)
        writers: list[metrics.Writer] = [lines, board, progress]
        if self.options.wandb:
            writers.append(self.wandb(stack))
        compiling = telemetry.CompileTime()
        stack.callback(compiling.close)
        gauges: list[telemetry.Gauge] = [self.goodput, compiling, telemetry.device_memory]
        return metrics.Recorder(writers, self.task.throughput(), self.recipe.log_every, gauges)

    def wandb(self, stack: contextlib.ExitStack) -> metrics.WandbWriter:
        """The writer to Weights & Biases."""
        config = fields.to_json(self.recipe)
        name = self.run_dir.resolve().name
        writer = metrics.WandbWriter(self.options.wandb, name, self.run_dir, config)
        stack.callback(writer.close)
        return writer

    def evaluate(self, pause: Pause, recorder: metrics.Recorder, watchdog: Watchdog) -> None:
        """Evaluates on the validation split, without regularization terms."""
        limit = self.recipe.evaluate_batches or None
        batches = itertools.islice(self.batches("validation"), limit)
        found = self.task.evaluate(pause.state.all_params, watchdog.watched(batches))
        pause.metrics.update(found)
        recorder.write({"step": pause.step, **found})

    def sample(self, pause: Pause, progress: Progress, samples: metrics.JsonlWriter | None) -> None:
        """Generates a sample, shows it and writes it to the run folder."""
        prompt, text = self.task.sample(pause.state.all_params)
        if samples is not None:
            samples.write({"step": pause.step, "prompt": prompt, "continuation": text})
            progress.sample(prompt, text)
