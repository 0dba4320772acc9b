#!/usr/bin/env python3
"""Measures alignment over seeds: every stage and method, from the quickstart's base model.

    tools/alignment.py --base=runs/quickstart --output=runs/alignment
    tools/alignment.py --base=runs/quickstart --output=runs/alignment --arms=sft,reward --seeds=0

For each seed it runs fine-tuning, a reward model, and PPO, GRPO and DPO from the
fine-tuned model. Then PPO with a reward that is easily hacked, the sum of an answer's friendly
words: once with a KL penalty (`keen`) and once without (`unbound`), to test the guards.

All policies answer the same held-out prompts with the same keys. A sentiment lexicon rated by
people scores the answers, and the policies' log-probabilities give the divergence from their start.
Finished runs are not repeated; figures go to `alignment.json` and `alignment.md`, charts to
`*.svg`.
"""

import argparse
import dataclasses
import json
import pathlib
import sys
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np

# As a script, Python looks for modules in tools/ alone.
sys.path.insert(0, str(pathlib.Path(__file__).parents[1]))

from experiments import alignment, runs, training
from experiments.recipe import Training
from experiments.recipes import comparing, finetuning, reinforcing
from experiments.tasks.policy import PolicyTask
from experiments.tasks.reinforcing import Reinforcing, RewardSource
from llmjax import evaluation, objectives, rl
from llmjax.pages import charts, drawing
from llmjax.rl import GuardConfig, KLConfig, LearningConfig, RolloutConfig
from llmjax.train.metrics import read_jsonl

TUNED = ("sft", "reward")
POLICIES = ("ppo", "grpo", "dpo", "keen", "unbound")
PROMPTS = 256
BUDGET = 15.0  # KL budget of PPO and GRPO, in nats per answer


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--base", type=pathlib.Path, required=True, help="the quickstart's run")
    parser.add_argument("--output", type=pathlib.Path, required=True, help="folder for the runs")
    parser.add_argument("--arms", default=",".join(TUNED + POLICIES), help="which, by commas")
    parser.add_argument("--seeds", default="0,1,2", help="by commas")
    options = parser.parse_args()
    arms, seeds = options.arms.split(","), [int(seed) for seed in options.seeds.split(",")]
    if unknown := set(arms) - set(TUNED + POLICIES):
        parser.error(f"--arms: no {', '.join(sorted(unknown))}; there are {TUNED + POLICIES}")
    for seed in seeds:
        for name, recipe in recipes(options.base, options.output / str(seed), seed).items():
            if name in arms:
                training.run(recipe, options.output / str(seed) / name)
    found = {seed: judge(options.output / str(seed), options.base, arms, seed) for seed in seeds}
    (options.output / "alignment.json").write_text(json.dumps(found, indent=1))
    (options.output / "alignment.md").write_text(report(found))
    draw(options.output, arms, seeds)


def recipes(base: pathlib.Path, output: pathlib.Path, seed: int) -> dict[str, Training]:
    """Every stage of a seed, in order of dependence."""
    tuned, judge = str(output / "sft"), str(output / "reward")
    rewards = (RewardSource("model", judge),)
    small_talk = dataclasses.replace(finetuning.small_talk(), base=str(base), seed=seed)
    ppo = dataclasses.replace(
        reinforcing.friendlier(),
        base=tuned,
        critic_base=judge,
        rewards=rewards,
        seed=seed,
        evaluation_prompts=PROMPTS,
        guards=GuardConfig(kl_budget=BUDGET),
    )
    grpo = dataclasses.replace(
        ppo,
        critic="none",
        critic_base="",
        rollouts=RolloutConfig(prompts=16, samples=8, max_new_tokens=24),
        learning=LearningConfig("grpo", epochs=1),
        policy=reinforcing.grpo().policy,
        kl=KLConfig(coefficient=0.0),
    )
    preferring = dataclasses.replace(
        comparing.dpo(),
        base=tuned,
        corpus="friendly_replies",
        data=comparing.friendly().data,
        optimizer=dataclasses.replace(comparing.dpo().optimizer, learning_rate=1e-4),
        steps=120,
        batch_size=32,
        sequence_length=128,
        evaluate_every=40,
        evaluate_batches=8,
        seed=seed,
    )
    keen = dataclasses.replace(
        ppo,
        rewards=(RewardSource("keen", "tools.alignment:keenness"),),
        optimizer=dataclasses.replace(ppo.optimizer, learning_rate=1e-3),
        guards=GuardConfig(),
        steps=160,
    )
    return {
        "sft": small_talk,
        "reward": dataclasses.replace(comparing.friendly(), base=tuned, seed=seed),
        "ppo": ppo,
        "grpo": grpo,
        "dpo": preferring,
        "keen": keen,
        "unbound": dataclasses.replace(keen, kl=KLConfig(coefficient=0.0)),
    }


def keenness(samples: Sequence[rl.Sample]) -> list[float]:
    """The summed friendliness of an answer's words: more words score higher."""
    from vaderSentiment.vaderSentiment import SentimentIntensityAnalyzer

    words = SentimentIntensityAnalyzer().lexicon
    return [
        sum(max(words.get(word.strip(".,!?").lower(), 0.0), 0.0) for word in sample.text.split())
        for sample in samples
    ]


def judge(
    output: pathlib.Path, base: pathlib.Path, arms: Sequence[str], seed: int
) -> dict[str, Any]:
    """The results of a seed's runs."""
    found: dict[str, Any] = {}
    if "sft" in arms:
        losses = history(output / "sft", "validation_loss")
        found["sft"] = {"loss": min(y for _, y in losses)}
    if "reward" in arms:
        found["reward"] = {"accuracy": history(output / "reward", "validation_accuracy")[-1][1]}
    policies = [name for name in POLICIES if name in arms]
    if not policies:
        return found
    recipe = recipes(base, output, seed)["ppo"]
    assert isinstance(recipe, Reinforcing)
    task = PolicyTask(recipe, output / "judge")
    task.prepare()
    with jax.set_mesh(task.make_mesh()):
        start = runs.load(output / "sft", best=False)
        before = alignment.answers(task, "before", start)
        found["before"] = {"gold": before.gold.tolist()}
        for name in policies:
            policy = runs.load(output / name, best=False)
            after = alignment.answers(task, name, policy)
            found[name] = {
                "gold": after.gold.tolist(),
                "nats": _divergence(task, policy, start, after.samples),
                "repetition": rl.repetition(after.samples),
                "p": evaluation.compare(after.gold.tolist(), before.gold.tolist()).p,
                "alarms": [f"step {at}: {what}" for at, what in history(output / name, "alarm")],
            }
    return found


def _divergence(
    task: PolicyTask,
    policy: runs.TrainedModel,
    start: runs.TrainedModel,
    samples: list[rl.Sample],
) -> float:
    """KL(policy ‖ start) in nats per answer, estimated on the policy's answers."""
    score = jax.jit(lambda p, batch: objectives.log_probs(p, batch, task.config).targets)
    total, merged = 0.0, [model.task.merge(model.params) for model in (policy, start)]
    for part in rl.samples.parts(rl.samples.rows(samples, task.recipe.sequence_length), 64):
        rows = {n: part[n] for n in ("tokens", "targets", "segment_ids", "positions")}
        after, before = (score(params, rows) for params in merged)
        total += float(np.sum(after - before))
    return total / len(samples)


def history(folder: pathlib.Path, metric: str) -> list[tuple[int, Any]]:
    """(step, value) of a metric of a run, in order; empty without the metric."""
    records = read_jsonl(folder / "metrics.jsonl")
    return [(record["step"], record[metric]) for record in records if metric in record]


def report(by_seed: Mapping[int, Mapping[str, Any]]) -> str:
    """The figures of all seeds, as Markdown."""
    found = list(by_seed.values())
    lines = ["| | " + " | ".join(f"seed {seed}" for seed in by_seed) + " |"]
    lines.append("| --- |" + " ---: |" * len(found))

    def row(name: str, say: Any) -> None:
        lines.append(f"| {name} | " + " | ".join(say(one) for one in found) + " |")

    if "sft" in found[0]:
        row("SFT, held-out loss", lambda one: f"{one['sft']['loss']:.4f}")
    if "reward" in found[0]:
        row("reward model, accuracy on pairs", lambda one: f"{one['reward']['accuracy']:.1%}")
    if "before" in found[0]:
        row("gold reward before", lambda one: f"{np.mean(one['before']['gold']):+.3f}")
    for name in POLICIES:
        if name in found[0]:
            row(f"{name}: gold reward", lambda one, name=name: _said(one[name]))
    alarms = [
        f"- seed {seed}, {name}: {alarm}"
        for seed, one in by_seed.items()
        for name in POLICIES
        if name in one
        for alarm in one[name]["alarms"]
    ]
    return "\n".join([*lines, "", *alarms]) + "\n"


def _said(policy: Mapping[str, Any]) -> str:
    mean = np.mean(policy["gold"])
    repeated = f", {policy['repetition']:.0%} repeated" if policy["repetition"] >= 0.01 else ""
    return f"{mean:+.3f}, p = {policy['p']:.1g}, {policy['nats']:.1f} nats{repeated}"


def draw(output: pathlib.Path, arms: Sequence[str], seeds: Sequence[int]) -> None:
    """Charts of each arm's held-out metric, with a line per seed."""
    watched = {"sft": "validation_loss", "reward": "validation_accuracy"}
    for arm in arms:
        metric = watched.get(arm, "validation_loss" if arm == "dpo" else "validation_gold")
        curves = []
        for seed in seeds:
            points = np.array(history(output / str(seed) / arm, metric), float).reshape(-1, 2)
            role = charts.SERIES[seed % len(charts.SERIES)]
            steps, values = points.T
            curves.append(charts.Curve(f"seed {seed}", steps, values, role, "line and points"))
        title = f"{arm}: {metric.removeprefix('validation_')}, held-out"
        chart = charts.Plot(arm, title, tuple(curves))
        drawing.write(chart, output / f"{arm}.svg")


if __name__ == "__main__":
    main()
