"""Accuracy, calibration and length bias of a reward model on held-out comparisons."""

import dataclasses
import functools
import json
import math
import os
import pathlib
from collections.abc import Callable, Iterable, Mapping
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np

from llmjax import models
from llmjax.evaluation.sums import sum_up
from llmjax.objectives import Batch, Loss, Weighted, segment_sums
from llmjax.objectives.comparison import Pairs, differences, require_segments

if TYPE_CHECKING:
    from rich.table import Table

SIDES = (1, 0, -1)  # the better response is longer, of equal length, or shorter


@dataclasses.dataclass(frozen=True)
class RewardReport:
    """Statistics of a reward model on held-out comparisons. The pairs of a row weigh 1 together.

    A statistic without data is NaN, such as `accuracy_longer` if no better response is longer.

    Attributes:
        rows: number of rows with a pair.
        accuracy: share of pairs in which the better response has the higher reward.
        calibration_error: mean distance of the calibration curve from the diagonal, over all pairs
            (expected calibration error: Guo et al. 2017, equation 3).
        confidence: float64 [bins], mean of σ(|r_i - r_j|), the model's claimed probability of
            being right, in equal bins over [0.5, 1].
        right: float64 [bins], accuracy of these pairs.
        share: float64 [bins], their share of all pairs.
        longer_share: among pairs of unequal length, how often the better response is longer.
        longer_chosen: among the same pairs, how often the longer one has the higher reward. If it
            is far above `longer_share`, the model has learned that longer is better.
        accuracy_longer: accuracy where the better response is longer.
        accuracy_shorter: accuracy where the better response is shorter.
        length_correlation: Pearson correlation of reward and length over all responses.
        length_correlation_within: the same for the differences within pairs, which removes the
            influence of the prompt.
    """

    rows: int
    accuracy: float
    calibration_error: float
    confidence: np.ndarray
    right: np.ndarray
    share: np.ndarray
    longer_share: float
    longer_chosen: float
    accuracy_longer: float
    accuracy_shorter: float
    length_correlation: float
    length_correlation_within: float

    def metrics(self) -> dict[str, float]:
        """All statistics except the calibration curve, by name, for a log."""
        values = dataclasses.asdict(self)
        return {name: value for name, value in values.items() if not isinstance(value, np.ndarray)}

    def table(self, title: str = "") -> "Table":
        """A terminal table of the calibration curve, with a row per bin that has pairs."""
        from rich.table import Table

        table = Table("confidence", title=title or None, title_justify="left")
        for name in ("accuracy", "share of pairs"):
            table.add_column(name, justify="right")
        for row in np.flatnonzero(self.share):
            figures = (values[row] for values in (self.confidence, self.right, self.share))
            table.add_row(*(f"{figure:.1%}" for figure in figures))
        return table

    def save(self, path: str | os.PathLike[str]) -> None:
        """Writes all statistics as JSON; a run's report reads RUN_DIR/reward_report.json."""
        plain = {
            name: _finite(value.tolist() if isinstance(value, np.ndarray) else value)
            for name, value in dataclasses.asdict(self).items()
        }
        pathlib.Path(path).write_text(json.dumps(plain, allow_nan=False), "utf-8")


def evaluate_reward(
    config: models.ModelConfig,
    params: Any,
    batches: Iterable[Mapping[str, np.ndarray]],
    *,
    responses: int = 2,
    bins: int = 10,
) -> RewardReport:
    """Evaluates a reward model on held-out comparisons.

    The length of a response is the number of its targets if batches have "targets". Otherwise it is
    that of the segment, whose prompt is the same within a pair.

    Args:
        config: the model's configuration, with a head of kind "reward".
        params: the model's parameters.
        batches: host batches, as for `objectives.reward`.
        responses: K, the maximum per row.
        bins: number of bins of the calibration curve.

    Raises:
        ValueError: there is no pair.
    """
    sums = sum_up(_statistics(config, responses, bins), params, batches)
    if not sums["weight"]:
        raise ValueError(
            "nothing to evaluate: no row of the batches has two responses (segments 1 and 2); give "
            "held-out comparisons"
        )
    total, counted, right = sums["weight"], sums["counted"], sums["right"]
    sides, right_by_side = sums["sides"], sums["right_by_side"]
    unequal = sides[0] + sides[2]
    with np.errstate(divide="ignore", invalid="ignore"):
        return RewardReport(
            rows=int(total),
            accuracy=float(right_by_side.sum() / total),
            calibration_error=float(np.abs(sums["confidence"] - right).sum() / total),
            confidence=sums["confidence"] / counted,
            right=right / counted,
            share=counted / total,
            longer_share=float(sides[0] / unequal),
            longer_chosen=float((right_by_side[0] + sides[2] - right_by_side[2]) / unequal),
            accuracy_longer=float(right_by_side[0] / sides[0]),
            accuracy_shorter=float(right_by_side[2] / sides[2]),
            length_correlation=_correlation(sums["moments"]),
            length_correlation_within=_correlation(sums["moments_within"]),
        )


@functools.cache
def _statistics(config: models.ModelConfig, responses: int, bins: int) -> Loss:
    """A loss whose metrics are the sums behind the report; its own value is 0."""

    def statistics(params, batch: Batch, _):
        ids = require_segments("evaluate_reward", batch, responses)
        hidden, _ = models.apply(
            params, batch["tokens"], config, segment_ids=ids, positions=batch.get("positions")
        )
        rewards, present = models.segment_rewards(params, hidden, config, ids, responses)
        counted = jnp.asarray(batch["targets"]) >= 0 if "targets" in batch else ids > 0
        lengths = segment_sums(counted.astype(rewards.dtype), ids, responses)
        pairs = Pairs.of(present)
        lead, longer = differences(rewards), differences(lengths)
        right = jnp.where(lead == 0, 0.5, lead > 0)
        confidence = jax.nn.sigmoid(jnp.abs(lead))
        places = jnp.clip(jnp.floor((2 * confidence - 1) * bins), 0, bins - 1)

        def of(values):
            return pairs.mean(values.astype(rewards.dtype))

        def by(values, where):
            return jnp.stack([of(jnp.where(condition, values, 0.0)) for condition in where])

        in_bin = [places == index for index in range(bins)]
        on_side = [jnp.sign(longer) == side for side in SIDES]
        ones = jnp.ones_like(lead)
        metrics = {
            "counted": by(ones, in_bin),
            "confidence": by(confidence, in_bin),
            "right": by(right, in_bin),
            "sides": by(ones, on_side),
            "right_by_side": by(right, on_side),
            "moments": _moments(rewards, lengths, lambda x: jnp.sum(jnp.where(present, x, 0.0))),
            # Each pair counts in both orders, so differences have mean 0.
            "moments_within": _moments(lead, longer, of) * jnp.array([1.0, 0, 0, 1, 1, 1]),
        }
        weight = jnp.sum(pairs.rows, dtype=jnp.float32)
        return Weighted(jnp.zeros(()), weight), metrics

    return statistics


def _finite(value: Any) -> Any:
    """Replaces numbers that are not finite by None, since JSON cannot express them."""
    if isinstance(value, list):
        return [_finite(item) for item in value]
    return value if math.isfinite(value) else None


def _moments(x: jax.Array, y: jax.Array, total: Callable) -> jax.Array:
    """The sums that `_correlation` needs, [6]."""
    return jnp.stack([total(z) for z in (jnp.ones_like(x), x, y, x * x, y * y, x * y)])


def _correlation(moments: np.ndarray) -> float:
    """Pearson correlation from n, Σx, Σy, Σx², Σy² and Σxy."""
    count, x, y, xx, yy, xy = moments
    return float((xy - x * y / count) / np.sqrt((xx - x * x / count) * (yy - y * y / count)))
