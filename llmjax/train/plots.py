"""The charts of a run."""

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np

from llmjax.objectives import explained_variance
from llmjax.pages.charts import FAINT, SERIES, Curve, Plot, thin
from llmjax.train.metrics import Record


def plots(
    training: Sequence[Record], evaluations: Sequence[Record], rollouts: Sequence[Record] = ()
) -> list[Plot]:
    """The charts for which there are data: those of any run, and those of rollouts.

    Args:
        training: records of steps.
        evaluations: records of evaluations.
        rollouts: records of iterations of reinforcement learning.
    """
    loss = _curve(training, "loss", "training")
    validation = _curve(
        evaluations, "validation_loss", "validation", role="second", mark="line and points"
    )
    rate = _curve(training, "learning_rate")
    speed = _curve(training[1:], "tokens_per_s")  # the first step of a run compiles
    norm = _curve(training, "grad_norm")
    found = [
        Plot("loss", "Loss (nats per token)", (*_with_mean(loss), validation)),
        Plot("learning_rate", "Learning rate", (thin(rate),), "small"),
        Plot("throughput", "Throughput (tokens per second)", _with_mean(speed), "from zero"),
        Plot("grad_norm", "Gradient norm", _with_mean(norm), "log"),
    ]
    if rollouts:
        found = _of_rollouts(training, evaluations, rollouts) + found
    return [plot for plot in found if any(curve.x.size for curve in plot.curves)]


def _of_rollouts(
    training: Sequence[Record], evaluations: Sequence[Record], rollouts: Sequence[Record]
) -> list[Plot]:
    """The charts of reinforcement learning: rewards, divergence, and the policy's updates."""
    pointed: dict[str, Any] = {"mark": "line and points"}
    held_out = pointed | {"role": "second"}
    rewards = (
        _curve(rollouts, "reward", "rollouts", strength=FAINT),
        _curve(evaluations, "validation_reward", "held-out prompts", **pointed),
        _curve(evaluations, "validation_gold", "gold, held-out prompts", **held_out),
    )
    lengths = (
        _curve(rollouts, "answer_tokens", "rollouts"),
        _curve(evaluations, "validation_answer_tokens", "held-out prompts", **held_out),
    )
    parts = sorted({name for record in rollouts for name in record if name.startswith("reward/")})
    clipped = (
        *_with_mean(_curve(training, "clipped_high", "above")),
        *_with_mean(_curve(training, "clipped_low", "below", role="second")),
    )
    found = [
        Plot("reward", "Reward per answer", rewards),
        Plot("kl", "KL from reference (nats per answer)", (_curve(rollouts, "kl_per_response"),)),
        Plot("answer_tokens", "Tokens per answer", lengths, "from zero"),
        Plot(
            "repetition",
            "Repetition (share of trigrams)",
            (_curve(rollouts, "repetition"),),
            "share",
        ),
        Plot("entropy", "Entropy (nats per token)", _with_mean(_curve(training, "entropy"))),
        Plot("clipped", "Clipped ratios (share of tokens)", clipped, "share"),
    ]
    if explained := [record for record in map(_explained, training) if record]:
        both = _with_mean(_curve(explained, "explained"))
        found.append(Plot("explained", "Explained variance of returns", both))
    if len(parts) > 1:
        curves = tuple(
            _curve(rollouts, name, name.removeprefix("reward/"), role=SERIES[i % len(SERIES)])
            for i, name in enumerate(parts)
        )
        found.insert(1, Plot("reward_parts", "Rewards by part", curves))
    return found


def calibration(confidence: np.ndarray, right: np.ndarray) -> Plot:
    """The calibration curve of a reward model: accuracy against confidence, ideal dashed.

    Args:
        confidence: [bins], NaN for bins without pairs.
        right: [bins], the accuracy in each bin, also NaN.
    """
    there = np.isfinite(confidence)
    ends = np.array([0.5, 1.0])
    curves = (
        Curve("perfect calibration", ends, ends, "muted", "dashes"),
        Curve("held-out pairs", confidence[there], right[there], mark="line and points"),
    )
    return Plot("calibration", "Accuracy on comparisons", curves, x="confidence")


def _explained(record: Record) -> Record:
    """A record of the explained variance; empty without a critic, or if all returns are equal."""
    names = ("return", "return_square", "value_error", "value_error_square")
    if not all(isinstance(record.get(name), int | float) for name in names):
        return {}
    if record["return_square"] - record["return"] ** 2 <= 0:
        return {}
    return {"step": record["step"], "explained": explained_variance(record)}


def _curve(records: Sequence[Record], name: str, label: str = "", **options: Any) -> Curve:
    pairs = [(r["step"], r[name]) for r in records if isinstance(r.get(name), int | float)]
    steps, values = np.array(pairs, dtype=np.float64).reshape(-1, 2).T
    return Curve(label, steps, values, **options)


def _with_mean(curve: Curve) -> tuple[Curve, Curve]:
    """The curve, faint, and its moving average over a fiftieth of the run (less at the ends)."""
    size = curve.y.size
    index = np.arange(size)
    low, high = np.maximum(index - size // 100, 0), np.minimum(index + size // 100 + 1, size)
    sums = np.concatenate([[0.0], np.cumsum(curve.y)])
    mean = (sums[high] - sums[low]) / (high - low)
    label = f"{curve.label}, smoothed" if curve.label else ""
    smooth = dataclasses.replace(curve, y=mean, label=label)
    return thin(dataclasses.replace(curve, label="", strength=FAINT)), thin(smooth)
