"""Statistics over several runs (cross-validation folds or seeds): means, intervals, comparisons.

Runs with different seeds are independent. Folds are not: their training sets overlap, so their
variance underestimates that of new data and an interval based on it alone is too narrow. Nadeau &
Bengio (2003, section 3) correct for the overlap: they estimate the variance of the mean of J runs
as (1/J + n_test/n_train) s². `overlap` is the second term; `fold_overlap(k)` gives it for k folds.
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
        mean: mean of the runs.
        deviation: standard deviation, with runs - 1 degrees of freedom.
        low: lower end of the mean's confidence interval, by Student's t.
        high: upper end.
        count: number of runs.
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
    """The paired difference of two settings.

    Attributes:
        difference: summary of first minus second.
        t: Student's statistic with `difference.count` - 1 degrees of freedom.
        p: two-sided p-value.
    """

    difference: Summary
    t: float
    p: float

    def is_significant(self, level: float = 0.05) -> bool:
        """Whether p is below the level."""
        return self.p < level


def fold_overlap(folds: int) -> float:
    """n_test/n_train of k-fold cross-validation: 1/(k - 1)."""
    if folds < 2:
        raise ValueError(f"folds={folds}: cross-validation needs at least 2")
    return 1 / (folds - 1)


def summarize(
    values: Sequence[float], *, overlap: float = 0.0, confidence: float = 0.95
) -> Summary:
    """Mean, standard deviation and confidence interval of two or more runs.

    Args:
        values: values of one metric.
        overlap: n_test/n_train if the runs are folds (see the module docstring); 0 for seeds.
        confidence: level of the interval.

    Raises:
        ValueError: fewer than two values, a value that is not finite, or an argument out of range.
    """
    from scipy import stats  # half a second to import

    numbers = np.asarray(values, np.float64)
    if numbers.ndim != 1 or numbers.size < 2:
        raise ValueError(f"{numbers.size} run(s) have no spread: give at least 2")
    if not np.isfinite(numbers).all():
        raise ValueError(f"runs {list(values)}: every value must be finite")
    if not 0 <= overlap < math.inf or not 0 < confidence < 1:
        raise ValueError(f"overlap={overlap} must be at least 0, confidence={confidence} in (0, 1)")
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
    """Paired t-test of two settings over the same folds or seeds (Student 1908).

    Args:
        first: values of one metric under the first setting.
        second: the same under the second setting, in the same order.
        overlap: n_test/n_train if the runs are folds, which gives the corrected resampled t-test
            of Nadeau & Bengio (2003, section 4.1); 0 for seeds.
        confidence: level of the interval.

    Raises:
        ValueError: as for `summarize`, or if the numbers of runs differ.
    """
    from scipy import stats

    if len(first) != len(second):
        raise ValueError(f"{len(first)} and {len(second)} runs: a paired test needs equal numbers")
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
    """A terminal table with a row per run, then means, standard deviations and intervals.

    Args:
        runs: metrics of each run; the columns are those that all runs have.
        title: title of the table.
        what: the name of a run, "fold" or "seed".
        overlap: as for `summarize`.
        confidence: as for `summarize`.

    Raises:
        ValueError: as for `summarize`, or if the runs have no metric in common.
    """
    names = [name for name in (runs[0] if runs else ()) if all(name in run for run in runs)]
    if not names:
        raise ValueError(f"{len(runs)} runs have no metric in common: give at least 2 that do")
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
    """A terminal table of two settings, their differences and the result of `compare`.

    Args:
        settings: values of one metric, by the names of exactly two settings.
        title: title of the table.
        what: the name of a run, "fold" or "seed".
        overlap: as for `compare`.
        confidence: as for `compare`.

    Raises:
        ValueError: as for `compare`, or there are not two settings.
    """
    if len(settings) != 2:
        named = ", ".join(settings) or "none"
        raise ValueError(f"settings {named}: give two to compare, or use `fold_table` for each")
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
