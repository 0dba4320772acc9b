"""Aligns the quickstart's base model.

Runs supervised fine-tuning, reward modeling and PPO, each a recipe based on the previous run, in
folders of the base's run. Then compares the answers before and after, and scores them with a
sentiment lexicon that was rated by people and not used in training.
"""

import dataclasses
import itertools
import json
import pathlib
from typing import Any

import jax
import numpy as np
from rich.table import Table

from experiments import runs, training
from experiments.recipes.comparing import friendly
from experiments.recipes.finetuning import small_talk
from experiments.recipes.reinforcing import friendlier
from experiments.tasks.policy import PolicyTask
from experiments.tasks.reinforcing import RewardSource
from llmjax import evaluation, models, rl

SHOWN = 6  # prompts of the table


@dataclasses.dataclass(frozen=True)
class Answers:
    """A model's answers to held-out prompts.

    Attributes:
        name: name of the model.
        samples: its answers.
        gold: the lexicon's score of each, in [-1, 1].
    """

    name: str
    samples: list[rl.Sample]
    gold: np.ndarray


def align(run_dir: pathlib.Path, options: training.Options) -> list[Answers]:
    """Trains missing stages on top of a base; returns the answers of all policies, in order."""
    folders = {name: run_dir / name for name in ("small_talk", "friendly", "friendlier")}
    tuning = dataclasses.replace(small_talk(), base=str(run_dir))
    training.run(tuning, folders["small_talk"], options)
    base = str(folders["small_talk"])
    training.run(dataclasses.replace(friendly(), base=base), folders["friendly"], options)
    judge = str(folders["friendly"])
    rewards = (RewardSource("model", judge),)
    policy = dataclasses.replace(friendlier(), base=base, critic_base=judge, rewards=rewards)
    training.run(policy, folders["friendlier"], options)
    task = PolicyTask(policy, folders["friendlier"])
    named = {
        "base": run_dir,
        "after SFT": folders["small_talk"],
        "after PPO": folders["friendlier"],
    }
    with jax.set_mesh(task.make_mesh()):
        found = [answers(task, name, runs.load(folder)) for name, folder in named.items()]
    _keep(found, run_dir / "alignment.json")
    return found


def answers(task: PolicyTask, name: str, model: runs.TrainedModel) -> Answers:
    """A model's answers to the held-out prompts of a policy's task, with the same keys for all."""
    params = models.for_decoding(model.task.merge(model.params), model.config)
    samples: list[rl.Sample] = []
    for number, prompts in enumerate(task.batches("validation")):
        samples += task.writer(params, prompts, jax.random.key(number))
    return Answers(name, samples, rl.score(samples, task.gold).total)


def _keep(found: list[Answers], path: pathlib.Path) -> None:
    record: list[dict[str, Any]] = [
        {
            "model": answers.name,
            "gold": float(answers.gold.mean()),
            "answers": [{"prompt": s.prompt.text, "answer": s.text} for s in answers.samples],
        }
        for answers in found
    ]
    path.write_text(json.dumps(record, indent=1, ensure_ascii=False), "utf-8")


def said(found: list[Answers]) -> Table:
    """The first prompts with the answers of each model."""
    table = Table(title="Before and after", title_justify="left", show_lines=True)
    table.add_column("prompt")
    for answers in found:
        table.add_column(answers.name)
    rows = zip(*(answers.samples for answers in found), strict=True)
    for row in itertools.islice(rows, SHOWN):
        # The last line is the beginning of the answer.
        last = row[0].prompt.text.strip().splitlines()[-2:][0]
        table.add_row(last, *(sample.text.strip() for sample in row))
    return table


def judged(found: list[Answers]) -> str:
    """The sentiment of the answers, and the significance of the difference."""
    means = ", ".join(f"{answers.gold.mean():+.3f} {answers.name}" for answers in found)
    before, after = found[-2], found[-1]
    compared = evaluation.compare(after.gold.tolist(), before.gold.tolist())
    return (
        f"Sentiment of {len(after.gold)} answers to held-out prompts, from -1 to 1: {means}; "
        f"PPO changed it by {compared.difference.mean:+.3f}, p = {compared.p:.1g} (paired t-test)"
    )
