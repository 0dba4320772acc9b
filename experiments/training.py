"""A pretraining run, from a recipe to a report."""

import contextlib
import functools
import itertools
import pathlib

import jax

from experiments import objective, runs
from experiments.flags import FlagError
from experiments.recipe import Recipe
from llmjax import data, mesh, optim, planning, sampling, train
from llmjax import spec as specs
from llmjax.train import metrics
from llmjax.train.checkpoint import Checkpointer
from llmjax.train.loop import Every, Pause, fit
from llmjax.train.preemption import SaveOnSignal
from llmjax.train.progress import Progress
from llmjax.train.report import write_report
from llmjax.train.watchdog import Watchdog


def pretrain(
    recipe: Recipe,
    run_dir: pathlib.Path,
    *,
    resume: bool = True,
    hang_seconds: float = 0.0,
) -> pathlib.Path:
    """Trains a recipe's model in a folder and returns the path of its report.

    Args:
        recipe: the run.
        run_dir: its folder; see `experiments.runs`.
        resume: whether to go on with the run that is there. Off, a folder with a run is an error.
        hang_seconds: the process ends when no step completes for so long; 0 waits for ever.

    Raises:
        flags.FlagError: the recipe, the folder, the text and the devices do not fit together.
    """
    try:
        optim.schedule(recipe.optimizer, recipe.steps)
    except ValueError as error:
        raise FlagError(str(error)) from error
    made_mesh = runs.make_mesh(recipe)
    runs.open_run(run_dir, recipe, resume=resume)
    directory = runs.data_directory(run_dir, recipe)
    runs.prepare(recipe, directory)
    with jax.set_mesh(made_mesh), contextlib.ExitStack() as stack:
        _train(_Run(recipe, run_dir, directory), stack, hang_seconds)
    return write_report(run_dir)


def _train(run: "_Run", stack: contextlib.ExitStack, hang_seconds: float) -> None:
    """Restores or begins, and trains to the last step; what it opens is closed by the stack."""
    stack.callback(train.trim_after_compiling())
    recipe, run_dir = run.recipe, run.run_dir
    spec = objective.param_spec(recipe)
    optimizer = optim.make(recipe.optimizer, spec, recipe.steps)
    begin = functools.partial(train.init_state, jax.random.key(recipe.seed), spec, optimizer)
    batches = iter(run.batches("train"))
    checkpoints = stack.enter_context(
        Checkpointer(run_dir / "checkpoints", keep_last=max(recipe.keep_checkpoints, 1))
    )
    restored = checkpoints.restore_latest(jax.eval_shape(begin))
    if restored is None:
        state = begin()
    else:
        state = restored.state
        batches.set_state(restored.data)
    start = int(state.step)
    if start >= recipe.steps:
        print(f"{run_dir}: all {recipe.steps} steps are done; raise --steps to train on")
        return
    progress = stack.enter_context(Progress(recipe.steps, start=start, title=recipe.name))
    recorder = run.recorder(progress, start, stack)
    watchdog = stack.enter_context(Watchdog(hang_seconds or None, run_dir))
    preemption = SaveOnSignal(checkpoints)
    stack.callback(preemption.restore_handlers)
    samples = stack.enter_context(metrics.JsonlWriter(run_dir / "samples.jsonl", step=start))

    def every(interval, hook):
        return Every(interval, hook, last=recipe.steps)

    def write(pause: Pause) -> None:
        run.sample(pause, progress, samples)

    hooks = [
        recorder,
        watchdog,
        every(recipe.evaluate_every, lambda pause: run.evaluate(pause, recorder)),
        *([every(recipe.sample_every, write)] if recipe.objective == "clm" else []),
        every(recipe.checkpoint_every, checkpoints),
        preemption,
    ]
    step = train.make_step(run.loss, optimizer, accumulate=recipe.accumulate)
    fit(state, step, batches, steps=recipe.steps, hooks=hooks)


class _Run:
    """What the hooks of a run share."""

    def __init__(self, recipe: Recipe, run_dir: pathlib.Path, directory: pathlib.Path) -> None:
        self.recipe, self.run_dir, self.directory = recipe, run_dir, directory
        self.tokenizer = data.load_tokenizer(directory)
        self.loss = objective.make_loss(recipe, self.tokenizer)
        self.plain_loss = objective.make_loss(recipe, self.tokenizer, plain=True)

    def batches(self, split: data.SplitName):
        """The loader of a split."""
        return data.batches(
            self.directory,
            split=split,
            batch_size=self.recipe.batch_size,
            sequence_length=self.recipe.sequence_length,
            seed=self.recipe.seed,
            packing=self.recipe.packing,
            process_index=jax.process_index(),
            process_count=jax.process_count(),
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
        if self.recipe.objective == "clm":
            throughput = metrics.Throughput(
                planning.training_flops(self.recipe.model, self.recipe.sequence_length),
                planning.peak_flops(jax.devices()),
            )
        else:  # Few of the tokens that are read are targets.
            throughput = metrics.Throughput(counted="inputs")
        return metrics.Recorder([lines, board, progress], throughput, self.recipe.log_every)

    def evaluate(self, pause: Pause, recorder: metrics.Recorder) -> None:
        """Measures the validation text, without the terms that only regularise."""
        limit = self.recipe.evaluate_batches or None
        batches = itertools.islice(iter(self.batches("validation")), limit)
        found = objective.evaluate(
            self.recipe, self.plain_loss, pause.state.params, batches, self.tokenizer
        )
        pause.metrics.update(found)
        recorder.write({"step": pause.step, **found})

    def sample(self, pause: Pause, progress: Progress, samples: metrics.JsonlWriter) -> None:
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
        text = self.tokenizer.decode(written.tokens[0, : written.lengths[0]].tolist())
        samples.write({"step": pause.step, "prompt": prompt, "continuation": text})
        progress.sample(prompt, text)
