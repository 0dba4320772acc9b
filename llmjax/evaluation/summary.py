"""Figures of several runs, folds of a cross-validation or seeds: means, intervals, comparisons.

Runs with seeds of their own are independent. Folds are not: their training sets overlap, so their
spread is less than that of new data, and an interval from it alone too narrow. Nadeau & Bengio
(2003, section 3) add what the overlap hides: the variance of the mean of J runs is taken for
(1/J + n_test/n_train) s². `overlap` is that second term, `fold_overlap(k)` of k folds.
"""

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from rich.table import Table


@dataclasses.dataclass(frozen=True)
class Summary:
    """A metric over several runs.

    Attributes:
        mean: theirs.
        deviation: the standard deviation, with one degree of freedom less than runs.
        low: of the mean's confidence interval, by Student's t.
        high: the same.
        count: of the runs.
    """

    mean: float
    deviation: float
    low: float
    high: float
    count: int

    def __str__(self) -> str:
        return f"{self.mean:.4f} ± {self.deviation:.4f}"


@dataclasses.dataclass(frozen=True)
class Comparison:
    """The differences of two settings, run by run.

    Attributes:
        difference: a summary of first minus second.
        t: Student's statistic, of `difference.count` - 1 degrees of freedom.
        p: how probable one as large or larger, of either sign, is where nothing differs.
    """

    difference: Summary
    t: float
    p: float

    def is_significant(self, level: float = 0.05) -> bool:
        """Whether p is below a level."""
        return self.p < level


def fold_overlap(folds: int) -> float:
    """n_test/n_train of a k-fold cross-validation: 1/(k - 1)."""
    if folds < 2:
        raise ValueError(f"folds={folds}: a cross-validation has 2 or more")
    return 1 / (folds - 1)


def summarize(
    values: Sequence[float], *, overlap: float = 0.0, confidence: float = 0.95
) -> Summary:
    """Mean, standard deviation and confidence interval of two or more runs.

    Args:
        values: of one metric.
        overlap: n_test/n_train where runs are folds, see the head of this file; 0 of seeds.
        confidence: how often such intervals hold the true mean.

    Raises:
        ValueError: fewer than two values, one that is not finite, or settings out of range.
    """
    from scipy import stats  # half a second to import

    numbers = np.asarray(values, np.float64)
    if numbers.ndim != 1 or numbers.size < 2:
        raise ValueError(f"{numbers.size} runs say nothing of their spread: give 2 or more")
    if not np.isfinite(numbers).all():
        raise ValueError(f"runs {list(values)}: one is not finite, so there is no mean")
    if not 0 <= overlap < math.inf or not 0 < confidence < 1:
        raise ValueError(f"overlap={overlap} is 0 or more, confidence={confidence} in (0, 1)")
    mean, deviation = float(numbers.mean()), float(numbers.std(ddof=1))
    quantile = float(stats.t.ppf((1 + confidence) / 2, numbers.size - 1))
    half = quantile * deviation * math.sqrt(1 / numbers.size + overlap)
    return Summary(mean, deviation, mean - half, mean + half, numbers.size)


def compare(
    first: Sequence[float],
    second: Sequence[float],
    *,
    overlap: float = 0.0,
    confidence: float = 0.95,
) -> Comparison:
    """The paired t-test of two settings over the same folds or seeds (Student 1908).

    Args:
        first: one metric of one setting.
        second: the same of the other, in the same order.
        overlap: n_test/n_train where runs are folds, which makes it the corrected resampled t-test
            of Nadeau & Bengio (2003, section 4.1); 0 of seeds.
        confidence: of the interval.

    Raises:
        ValueError: as of `summarize`, or the numbers of runs differ.
    """
    from scipy import stats

    if len(first) != len(second):
        raise ValueError(f"{len(first)} runs and {len(second)}: a pair has one of each")
    differences = np.subtract(first, second).tolist()
    found = summarize(differences, overlap=overlap, confidence=confidence)
    error = found.deviation * math.sqrt(1 / found.count + overlap)
    if error:
        t = found.mean / error
    elif found.mean:
        t = math.copysign(math.inf, found.mean)
    else:
        t = 0.0
    return Comparison(found, t, float(2 * stats.t.sf(abs(t), found.count - 1)))


def fold_table(
    runs: Sequence[Mapping[str, float]],
    *,
    title: str = "",
    what: str = "fold",
    overlap: float = 0.0,
    confidence: float = 0.95,
) -> "Table":
    """A line for each run, and below them means, deviations and intervals, for the terminal.

    Args:
        runs: the metrics of each; columns are those that all have.
        title: above it.
        what: a run is.
        overlap: as of `summarize`.
        confidence: as of `summarize`.

    Raises:
        ValueError: as of `summarize`.
    """
    names = [name for name in (runs[0] if runs else ()) if all(name in run for run in runs)]
    columns = [[run[name] for run in runs] for name in names]
    found = [summarize(c, overlap=overlap, confidence=confidence) for c in columns]
    table = _table(title, what, names)
    for number, run in enumerate(runs, start=1):
        table.add_row(str(number), *(f"{run[name]:.4f}" for name in names))
    table.add_section()
    table.add_row("mean", *(f"{summary.mean:.4f}" for summary in found))
    table.add_row("standard deviation", *(f"{summary.deviation:.4f}" for summary in found))
    table.add_row(f"{confidence:.0%} interval", *map(_interval, found))
    return table


def comparison_table(
    settings: Mapping[str, Sequence[float]],
    *,
    title: str = "",
    what: str = "fold",
    overlap: float = 0.0,
    confidence: float = 0.95,
) -> "Table":
    """Two settings side by side with their differences and what `compare` says of them.

    Args:
        settings: the values of one metric by the names of two settings.
        title: above it.
        what: a run is.
        overlap: as of `compare`.
        confidence: as of `compare`.

    Raises:
        ValueError: as of `compare`.
    """
    (first, a), (second, b) = settings.items()
    found = compare(a, b, overlap=overlap, confidence=confidence)
    table = _table(title, what, (first, second, "difference"))
    for number, (x, y) in enumerate(zip(a, b, strict=True), start=1):
        table.add_row(str(number), f"{x:.4f}", f"{y:.4f}", f"{x - y:+.4f}")
    table.add_section()
    means = (f"{np.mean(values):.4f}" for values in (a, b))
    table.add_row("mean", *means, f"{found.difference.mean:+.4f}")
    table.add_row(f"{confidence:.0%} interval", "", "", _interval(found.difference))
    table.add_row("t", "", "", f"{found.t:.3f}")
    table.add_row("p", "", "", f"{found.p:.2g}")
    return table


def _table(title: str, what: str, names: Sequence[str]) -> "Table":
    from rich.table import Table

    table = Table(what, title=title or None, title_justify="left")
    for name in names:
        table.add_column(name, justify="right")
    return table


def _interval(summary: Summary) -> str:
    return f"{summary.low:.4f} to {summary.high:.4f}"
