#!/usr/bin/env python3
"""Trains nanoGPT's published CPU configuration in llmjax and in torch, and compares the losses.

    apt-get install bible-kjv && bible -f gen1:1-rev22:21 > kjv.txt
    tools/convergence.py --text=kjv.txt --json=convergence.json

The configuration is the recipe `nanogpt_cpu`; the torch model is tools/torch_gpt.py. Both get the
same batches in the same order, and draw their own initial weights from the same distributions. The
text is truncated to the size that nanoGPT trains on; the last tenth is held out, and every loss is
over all of it. Exits with 1 if the mean final losses differ by 1 % or more.

Needs the extra `parity`. Takes some minutes per seed on two cores.
"""

import argparse
import dataclasses
import importlib.util
import json
import math
import pathlib
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import numpy as np
import rich.console
import rich.table

# As a script, Python looks for modules in tools/ alone.
sys.path.insert(0, str(pathlib.Path(__file__).parents[1]))

from experiments.recipe import Recipe
from experiments.recipes import RECIPES
from llmjax import data, models, objectives, optim, train
from llmjax import spec as specs
from llmjax.data.tokenizer import ByteTokenizer

TEXT_BYTES = 1_115_394  # size of the Shakespeare text that nanoGPT trains on
TOLERANCE = 0.01

Batches = Sequence[tuple[np.ndarray, np.ndarray]]


@dataclasses.dataclass(frozen=True)
class Task:
    """The task of both models.

    Attributes:
        recipe: the configuration.
        train: int32 [N], tokens to draw windows from.
        validation: batches of windows side by side, (tokens, targets) [B, S] each.
        evaluate_every: steps between losses.
    """

    recipe: Recipe
    train: np.ndarray
    validation: Batches
    evaluate_every: int

    def batches(self, seed: int) -> Batches:
        """Batches of random windows."""
        B, S = self.recipe.batch_size, self.recipe.sequence_length
        starts = np.random.default_rng(seed).integers(
            len(self.train) - S, size=(self.recipe.steps, B)
        )
        return [windows(self.train, row, S) for row in starts]

    def is_due(self, step: int) -> bool:
        """Whether to evaluate the loss after `step` steps."""
        return step % self.evaluate_every == 0 or step == self.recipe.steps


def windows(tokens: np.ndarray, starts: np.ndarray, length: int) -> tuple[np.ndarray, np.ndarray]:
    """The windows [B, S] that begin at `starts` [B], and the next token at each position."""
    places = starts[:, None] + np.arange(length)
    return tokens[places], tokens[places + 1]


def make_task(text: bytes, recipe: Recipe, evaluate_every: int = 500) -> Task:
    """Makes a task from a text, of which a tenth is held out.

    Raises:
        ValueError: the text is too short.
    """
    B, S = recipe.batch_size, recipe.sequence_length
    tokens = np.array(ByteTokenizer().encode(text.decode()), np.int32)
    cut = len(tokens) * 9 // 10
    held_out = tokens[cut:]
    count = (len(held_out) - 1) // S // B * B
    if count < B:
        raise ValueError(f"the text has {len(text)} bytes: at least {10 * (B * S + 1)} are needed")
    rows = windows(held_out, np.arange(count) * S, S)
    validation = list(zip(*(np.split(part, count // B) for part in rows), strict=True))
    return Task(recipe, tokens[:cut], validation, evaluate_every)


def run_llmjax(task: Task, seed: int, say: Callable[[int, float], None]) -> dict[int, float]:
    """Validation losses by step."""
    recipe = task.recipe
    spec = models.spec(recipe.model)
    optimizer = optim.make(recipe.optimizer, spec, recipe.steps)
    state = train.init_state(jax.random.key(seed), spec, optimizer)
    loss = objectives.clm(recipe.model)
    step = train.make_step(loss, optimizer)

    @jax.jit
    def score(params, batch):
        weighted, _ = loss(params, batch, None)
        return weighted.sum / weighted.weight

    losses = {}
    for number, batch in enumerate(task.batches(seed), start=1):
        state, _ = step(state, _batch(batch))
        if task.is_due(number):
            scores = [score(state.params, _batch(held_out)) for held_out in task.validation]
            losses[number] = float(np.mean(scores, dtype=np.float64))
            say(number, losses[number])
    return losses


def run_torch(task: Task, seed: int, say: Callable[[int, float], None]) -> dict[int, float]:
    """The same in torch."""
    from tools import torch_gpt

    config = task.recipe.model
    losses = {}

    def report(step: int, gpt: torch_gpt.GPT) -> None:
        if step == 1:
            expected = specs.count(models.spec(config))
            assert torch_gpt.count(gpt) == expected, (torch_gpt.count(gpt), expected)
        if task.is_due(step):
            losses[step] = torch_gpt.evaluate(gpt, task.validation)
            say(step, losses[step])

    torch_gpt.train(
        {
            "vocab_size": config.vocab_size,
            "layers": config.num_layers,
            "width": config.embed_dim,
            "heads": config.num_heads,
            "length": config.max_length,
        },
        dataclasses.asdict(task.recipe.optimizer),
        task.batches(seed),
        lambda step: published_rate(step, task.recipe),
        seed,
        report,
    )
    return losses


def published_rate(step: int, recipe: Recipe) -> float:
    """nanoGPT's learning rate: linear from 0, then a cosine to the final share at the last step."""
    settings = recipe.optimizer
    if step < settings.warmup_steps:
        return settings.learning_rate * step / settings.warmup_steps
    share = (step - settings.warmup_steps) / (recipe.steps - settings.warmup_steps)
    least = settings.learning_rate * settings.final_share
    return least + (settings.learning_rate - least) * (1 + math.cos(math.pi * share)) / 2


def _batch(batch: tuple[np.ndarray, np.ndarray]) -> dict[str, jax.Array]:
    tokens, targets = batch
    return {"tokens": jnp.asarray(tokens), "targets": jnp.asarray(targets)}


def main(arguments: list[str] | None = None) -> None:
    """The command line."""
    options = _options(arguments)
    stderr = rich.console.Console(stderr=True, highlight=False)
    recipe = dataclasses.replace(RECIPES["nanogpt_cpu"](), steps=options.steps)
    task = make_task(_text(options.text), recipe)
    losses: dict[str, list[dict[int, float]]] = {"llmjax": [], "torch": []}
    for seed in range(options.seeds):
        for name, run in (("llmjax", run_llmjax), ("torch", run_torch)):
            start = time.perf_counter()

            def say(step: int, loss: float, name=name, seed=seed, start=start) -> None:
                seconds = time.perf_counter() - start
                stderr.print(f"seed {seed}: {name}: step {step}: {loss:.4f} ({seconds:.0f} s)")

            losses[name].append(run(task, seed, say))
    final = {name: [run[recipe.steps] for run in runs] for name, runs in losses.items()}
    difference = statistics.mean(final["llmjax"]) / statistics.mean(final["torch"]) - 1
    show(final, difference)
    if options.json:
        record = {"losses": losses, "difference": difference, "steps": recipe.steps}
        pathlib.Path(options.json).write_text(json.dumps(record, indent=2) + "\n")
    if abs(difference) >= TOLERANCE:
        sys.exit(f"convergence: the mean losses differ by {difference:+.2%}")


def show(final: dict[str, list[float]], difference: float) -> None:
    """Prints the losses by seed, and their means."""
    table = rich.table.Table(box=None, header_style="bold", pad_edge=False)
    table.add_column("validation loss")
    for seed in range(len(final["torch"])):
        table.add_column(f"seed {seed}", justify="right")
    table.add_column("mean", justify="right")
    for name, values in final.items():
        table.add_row(name, *(f"{v:.4f}" for v in [*values, statistics.mean(values)]))
    console = rich.console.Console()
    console.print(table)
    console.print(f"difference of the means: {difference:+.2%}", highlight=False)


def _text(path: str) -> bytes:
    """The first bytes of the file, or all of Python's manual topics."""
    if path:
        # Drops a character that was cut in two.
        text = pathlib.Path(path).read_bytes()[:TEXT_BYTES]
        return text.decode(errors="ignore").encode()
    with tempfile.TemporaryDirectory() as folder:
        corpus = pathlib.Path(folder, "topics.jsonl")
        data.python_topics(corpus)
        texts = [json.loads(line)["text"] for line in corpus.read_text().splitlines()]
    return "".join(texts).encode()


def _options(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--text", default="", help="a text file (default: Python's manual topics)")
    parser.add_argument("--seeds", type=int, default=3, help="runs of each (default: 3)")
    parser.add_argument("--steps", type=int, default=2000, help="steps per run (default: 2000)")
    parser.add_argument("--json", metavar="FILE", help="file for the losses")
    options = parser.parse_args(arguments)
    if options.seeds < 1:
        parser.error(f"--seeds={options.seeds}: give 1 or more")
    if options.text and not pathlib.Path(options.text).is_file():
        parser.error(f"--text={options.text}: there is no such file")
    if importlib.util.find_spec("torch") is None:
        parser.error("torch is not installed: pip install -e '.[parity]'")
    return options


if __name__ == "__main__":
    main()
