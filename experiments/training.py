"""A pretraining run, from a recipe to a report."""

import contextlib
import dataclasses
import functools
import itertools
import pathlib
import time
from collections.abc import Callable

import jax

from experiments import fields, objective, processes, runs
from experiments.flags import FlagError
from experiments.recipe import Recipe
from llmjax import data, mesh, optim, planning, sampling, train
from llmjax import spec as specs
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
    """How a run is looked after; none of it changes what is learnt, though it may end sooner.

    Attributes:
        resume: whether to go on with the run that is there. Off, a folder with a run is an error.
        hang_seconds: the process ends when no step completes for so long; 0 waits for ever.
        profile: the first and the last step that a trace is written of, or None.
        wandb: the project of Weights & Biases that gets the metrics, or "".
        command: the command line that goes on with the run, said when a signal ends it.
        watch: called after each evaluation, whose metrics the pause has; True ends the run there.
    """

    resume: bool = True
    hang_seconds: float = 0.0
    profile: tuple[int, int] | None = None
    wandb: str = ""
    command: str = ""
    watch: Callable[[Pause], bool] | None = None


def pretrain(recipe: Recipe, run_dir: pathlib.Path, options: Options = Options()) -> pathlib.Path:
    """Trains a recipe's model in a folder and returns the path of its report.

    Args:
        recipe: the run.
        run_dir: its folder; see `experiments.runs`.
        options: how it is looked after.

    Raises:
        flags.FlagError: the recipe, the folder, the text and the devices do not fit together.
        DivergedError: too many steps in a row were skipped; the folder has their batches.
    """
    try:
        optim.make(recipe.optimizer, objective.param_spec(recipe), recipe.steps)
        if options.wandb:
            metrics.require_wandb()
    except (ValueError, ModuleNotFoundError) as error:
        raise FlagError(str(error)) from error
    made_mesh = runs.make_mesh(recipe)
    directory = runs.data_directory(run_dir, recipe)
    processes.first(lambda: runs.open_run(run_dir, recipe, resume=options.resume))
    processes.first(lambda: runs.prepare(recipe, directory))
    with jax.set_mesh(made_mesh), contextlib.ExitStack() as stack:
        _train(_Run(recipe, run_dir, directory, options), stack)
    return run_dir / "report.html" if jax.process_index() else write_report(run_dir)


def _train(run: "_Run", stack: contextlib.ExitStack) -> None:
    """Restores or begins, and trains to the last step; what it opens is closed by the stack."""
    stack.callback(train.trim_after_compiling())
    recipe = run.recipe
    spec = objective.param_spec(recipe)
    optimizer = optim.make(recipe.optimizer, spec, recipe.steps)
    begin = functools.partial(train.init_state, jax.random.key(recipe.seed), spec, optimizer)
    batches = iter(run.batches("train"))
    remembering: dict[str, Remembering] = {
        "early_stopping": run.early_stopping,
        "goodput": run.goodput,
    }
    checkpoints = stack.enter_context(runs.checkpointer(run.run_dir, recipe, remembering))
    restored = checkpoints.restore_latest(jax.eval_shape(begin), set_aside=True)
    if restored is None:
        state = begin()
    else:
        state = restored.state
        batches.set_state(restored.data)
    start = int(state.step)
    if start >= recipe.steps:
        print(f"{run.run_dir}: all {recipe.steps} steps are done; raise --steps to train on")
        return
    if run.ended(start):
        return
    step = train.make_step(
        run.loss,
        optimizer,
        accumulate=recipe.accumulate,
        spikes=recipe.spikes,
        norms=recipe.log_norms,
        sharding=objective.sharding(recipe),
    )
    hooks = run.hooks(checkpoints, start, stack)
    try:
        end = fit(state, step, batches, steps=recipe.steps, hooks=hooks)
    except DivergedError as error:
        where = save_batches(error.batches, run.run_dir / "diverged")
        raise DivergedError(f"{error}: {where}", error.batches) from None
    run.ended(int(end.step))


class _Run:
    """What the hooks of a run share."""

    def __init__(
        self, recipe: Recipe, run_dir: pathlib.Path, directory: pathlib.Path, options: Options
    ) -> None:
        self.recipe, self.run_dir, self.directory = recipe, run_dir, directory
        self.options = options
        self.tokenizer = data.load_tokenizer(directory)
        self.loss = objective.make_loss(recipe, self.tokenizer)
        self.plain_loss = objective.make_loss(recipe, self.tokenizer, plain=True)
        self.early_stopping = EarlyStopping(recipe.early_stopping)
        self.goodput = telemetry.Goodput(runs.begun(run_dir) or time.time())

    def hooks(
        self, checkpoints: Checkpointer, start: int, stack: contextlib.ExitStack
    ) -> list[Hook]:
        """What watches a run that starts after a step, in the order of their calls."""
        recipe, options = self.recipe, self.options
        progress = stack.enter_context(Progress(recipe.steps, start=start, title=recipe.name))
        recorder = self.recorder(progress, start, stack)
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
            profiler = telemetry.Profiler(options.profile, folder, start=start)
            stack.callback(profiler.close)
            hooks.append(profiler)

        def every(interval: int, hook: Callable[[Pause], bool | None]) -> Every:
            return Every(interval, hook, last=recipe.steps)

        def evaluate(pause: Pause) -> bool:
            self.evaluate(pause, recorder)
            ends = self.early_stopping(pause)
            return bool(options.watch and options.watch(pause)) or ends

        hooks.append(every(recipe.evaluate_every, evaluate))
        if recipe.objective == "clm":
            write = functools.partial(self.sample, progress=progress, samples=samples)
            hooks.append(every(recipe.sample_every, write))
        hooks.append(every(recipe.checkpoint_every, checkpoints))
        if recipe.early_stopping.patience:
            hooks.append(Every(recipe.evaluate_every, SaveBest(self.early_stopping, checkpoints)))
        return [*hooks, preemption]

    def ended(self, step: int) -> bool:
        """Whether early stopping has ended the run at a step, which is then said."""
        found = self.early_stopping
        if found.stopped:
            print(
                f"{self.run_dir}: stopped early at step {step}; the best {found.config.metric} was "
                f"{found.best} at step {found.best_step}, which evaluation and export read. Raise "
                "--early_stopping.patience to train on"
            )
        return found.stopped

    def batches(self, split: data.SplitName):
        """The loader of a split."""
        index, count = mesh.row_share()
        return data.batches(
            self.directory,
            split=split,
            batch_size=self.recipe.batch_size,
            sequence_length=self.recipe.sequence_length,
            seed=self.recipe.seed,
            packing=self.recipe.packing,
            process_index=index,
            process_count=count,
        )

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
        chips = jax.device_count()
        if self.recipe.objective == "clm":
            throughput = metrics.Throughput(
                planning.training_flops(self.recipe.model, self.recipe.sequence_length),
                planning.peak_flops(jax.devices()),
                chips=chips,
            )
        else:  # Few of the tokens that are read are targets.
            throughput = metrics.Throughput(counted="inputs", chips=chips)
        return metrics.Recorder(writers, throughput, self.recipe.log_every, gauges)

    def wandb(self, stack: contextlib.ExitStack) -> metrics.WandbWriter:
        """The writer to Weights & Biases."""
        config = fields.to_json(self.recipe)
        name = self.run_dir.resolve().name
        writer = metrics.WandbWriter(self.options.wandb, name, self.run_dir, config)
        stack.callback(writer.close)
        return writer

    def evaluate(self, pause: Pause, recorder: metrics.Recorder) -> None:
        """Measures the validation text, without the terms that only regularise."""
        limit = self.recipe.evaluate_batches or None
        batches = itertools.islice(iter(self.batches("validation")), limit)
        found = objective.evaluate(
            self.recipe, self.plain_loss, pause.state.params, batches, self.tokenizer
        )
        pause.metrics.update(found)
        recorder.write({"step": pause.step, **found})

    def sample(self, pause: Pause, progress: Progress, samples: metrics.JsonlWriter | None) -> None:
        """Lets the model write, shows it and keeps it."""
        prompt, config = self.recipe.sample_prompt, self.recipe.model
        tokens = [self.tokenizer.bos_id, *self.tokenizer.encode(prompt)]
        room = config.max_length - len(tokens)
        with jax.set_mesh(mesh.for_decoding(jax.sharding.get_mesh())):
            written = sampling.generate(
                specs.move(pause.state.params, objective.param_spec(self.recipe)),
                [tokens],
                config,
                jax.random.key(self.recipe.seed),
                max_new_tokens=min(self.recipe.sample_tokens, room),
                sampler=sampling.SamplerConfig(temperature=0.8, top_p=0.95),
                stop_tokens=(self.tokenizer.eos_id,),
            )
        if samples is not None:
            text = self.tokenizer.decode(written.tokens[0, : written.lengths[0]].tolist())
            samples.write({"step": pause.step, "prompt": prompt, "continuation": text})
            progress.sample(prompt, text)
