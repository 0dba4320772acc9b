#!/usr/bin/env python3
r"""Compares LoRA with full fine-tuning of one base on questions with answers, over seeds.

    tools/low_rank.py --base=SmolLM2-135M --output=runs/low_rank
    tools/low_rank.py --base=runs/quickstart --output=runs/low_rank --template=speakers \
        --rank=2 --rates 3e-4 5e-3 --batch_size=32

The base is a run or a checkpoint folder. Both methods train for the same steps on the same batches
with the same schedule, each at its own peak rate. Finished runs are not repeated; figures go to
`low_rank.json` and `low_rank.md`, the chart to `low_rank.svg`.
"""

import argparse
import dataclasses
import json
import pathlib
import sys
from typing import Any

# As a script, Python looks for modules in tools/ alone.
sys.path.insert(0, str(pathlib.Path(__file__).parents[1]))

from experiments import runs, training
from experiments.recipes import finetuning
from experiments.tasks.finetuning import Finetuning
from experiments.tasks.tuning import TuningTask
from llmjax import spec as specs
from llmjax.data.config import ExampleConfig
from llmjax.evaluation import summary
from llmjax.pages import charts, drawing
from llmjax.peft import LoraConfig, MethodConfig
from tools import curves
from tools.alignment import history

METHODS = ("full", "lora")


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--base", type=pathlib.Path, required=True, help="a run or a checkpoint")
    parser.add_argument("--output", type=pathlib.Path, required=True, help="folder for the runs")
    parser.add_argument("--template", default="", help="of chats (default: the tokenizer's own)")
    parser.add_argument("--rank", type=int, default=4, help="of LoRA; alpha is twice that")
    parser.add_argument(
        "--rates", type=float, nargs=2, default=(5e-5, 2e-3), help="peak rates: full, LoRA"
    )
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--batch_size", type=int, default=8, help="rows of 128 tokens")
    parser.add_argument("--seeds", type=int, default=3, help="how many, two or more (default: 3)")
    options = parser.parse_args()
    if options.seeds < 2:
        parser.error(f"--seeds={options.seeds}: an interval needs 2 or more")
    for seed in range(options.seeds):
        for method in METHODS:
            training.run(recipe(options, method, seed), options.output / str(seed) / method)
    found = results(options.output, options.seeds)
    (options.output / "low_rank.json").write_text(json.dumps(found, indent=1) + "\n")
    (options.output / "low_rank.md").write_text(markdown(found))
    drawing.write(chart(found), options.output / "low_rank.svg")
    print(markdown(found))


def recipe(options: argparse.Namespace, method: str, seed: int) -> Finetuning:
    """One method's run."""
    small_talk = finetuning.small_talk()
    lora = LoraConfig(rank=options.rank, alpha=2.0 * options.rank)
    return dataclasses.replace(
        small_talk,
        base=str(options.base),
        data=ExampleConfig(template=options.template, max_length=128),
        peft=MethodConfig(name="lora", lora=lora) if method == "lora" else MethodConfig(),
        optimizer=dataclasses.replace(
            small_talk.optimizer, learning_rate=options.rates[METHODS.index(method)]
        ),
        steps=options.steps,
        batch_size=options.batch_size,
        evaluate_every=max(options.steps // 6, 1),
        checkpoint_every=options.steps,
        sample_tokens=0,
        seed=seed,
    )


def results(output: pathlib.Path, seeds: int) -> dict[str, Any]:
    """Held-out losses by method and seed as (step, loss), and the share that LoRA trains."""
    task = runs.saved_task(output / "0/lora")
    assert isinstance(task, TuningTask)
    return {
        "trained": specs.count(task.trained_spec) / specs.count(task.model_spec),
        "losses": {
            method: [
                history(output / str(seed) / method, "validation_loss") for seed in range(seeds)
            ]
            for method in METHODS
        },
    }


def markdown(found: dict[str, Any]) -> str:
    """The final losses of every seed, and the difference with its interval."""
    final = {name: [loss[-1][1] for loss in found["losses"][name]] for name in METHODS}
    excess = [lora / full - 1 for full, lora in zip(final["full"], final["lora"], strict=True)]
    lines = ["| | " + " | ".join(f"seed {seed}" for seed in range(len(excess))) + " |"]
    lines.append("| --- |" + " ---: |" * len(excess))
    share = f"{found['trained']:.2%} of the parameters"
    for name, label in zip(METHODS, ("all parameters", f"LoRA, {share}"), strict=True):
        lines.append(f"| {label} | " + " | ".join(f"{loss:.4f}" for loss in final[name]) + " |")
    lines.append("| LoRA above | " + " | ".join(f"{one:+.2%}" for one in excess) + " |")
    mean = summary.summarize(excess)
    lines += ["", f"{mean.mean:+.2%} ({mean.low:+.2%} to {mean.high:+.2%}, 95 %)."]
    return "\n".join(lines) + "\n"


def chart(found: dict[str, Any]) -> charts.Plot:
    """Losses by step: means over seeds within their 95 % intervals."""
    drawn = []
    labels = ("all parameters", f"LoRA, {found['trained']:.2%} of the parameters")
    for name, label, role in zip(METHODS, labels, charts.SERIES[1::-1], strict=True):
        runs = [[loss for _, loss in run] for run in found["losses"][name]]
        steps = [step for step, _ in found["losses"][name][0]]
        drawn.append(curves.mean(label, steps, runs, role))
    return charts.Plot("low_rank", "Held-out loss (nats per token)", tuple(drawn))


if __name__ == "__main__":
    main()
