"""Intervals and tests equal published ones, and their formulas written out."""

import io
import math

import numpy as np
import pytest
from rich.console import Console

from llmjax.evaluation import compare, comparison_table, fold_overlap, fold_table, summarize

# Student (1908): hours of sleep that two drugs gave to ten patients. R's documentation of t.test
# has what follows from them: t = -4.0621, p = 0.002833, the interval, and the mean -1.58.
FIRST = [0.7, -1.6, -0.2, -1.2, -0.1, 3.4, 3.7, 0.8, 0.0, 2.0]
SECOND = [1.9, 0.8, 1.1, 0.1, -0.1, 4.4, 5.5, 1.6, 4.6, 3.4]


def test_students_own_example():
    found = compare(FIRST, SECOND)
    assert found.difference.mean == pytest.approx(-1.58)
    assert found.t == pytest.approx(-4.0621, abs=5e-5)
    assert found.p == pytest.approx(0.002833, abs=5e-7)
    assert found.difference.low == pytest.approx(-2.4598858, abs=5e-8)
    assert found.difference.high == pytest.approx(-0.7001142, abs=5e-8)
    assert found.is_significant(0.01)
    assert not found.is_significant(0.001)
    other = compare(SECOND, FIRST)
    assert (other.t, other.p) == (-found.t, found.p)


@pytest.mark.parametrize(
    ("count", "confidence", "quantile"),
    [(2, 0.95, 12.706), (3, 0.95, 4.303), (5, 0.9, 2.132), (10, 0.99, 3.250)],
)
def test_intervals_have_the_quantiles_of_the_printed_table(count, confidence, quantile):
    values = [0.1 * index**2 for index in range(count)]
    found = summarize(values, confidence=confidence)
    mean = sum(values) / count
    deviation = math.sqrt(sum((value - mean) ** 2 for value in values) / (count - 1))
    assert found.mean == pytest.approx(mean)
    assert found.deviation == pytest.approx(deviation)
    half = quantile * deviation / math.sqrt(count)
    assert found.high - mean == pytest.approx(half, rel=2e-4)
    assert mean - found.low == pytest.approx(half, rel=2e-4)


def test_overlapping_folds_are_corrected():
    """Nadeau & Bengio's statistic, of 10 folds: the variance is (1/10 + 1/9) s²."""
    a = [0.81, 0.79, 0.84, 0.80, 0.78, 0.83, 0.82, 0.80, 0.79, 0.85]
    b = [0.80, 0.78, 0.82, 0.80, 0.76, 0.81, 0.82, 0.79, 0.78, 0.82]
    differences = [x - y for x, y in zip(a, b, strict=True)]
    mean = sum(differences) / 10
    variance = sum((d - mean) ** 2 for d in differences) / 9
    naive, corrected = compare(a, b), compare(a, b, overlap=fold_overlap(10))
    assert naive.t == pytest.approx(mean / math.sqrt(variance / 10))
    assert corrected.t == pytest.approx(mean / math.sqrt((1 / 10 + 1 / 9) * variance))
    assert naive.p < corrected.p
    width = [c.difference.high - c.difference.low for c in (naive, corrected)]
    assert width[1] / width[0] == pytest.approx(math.sqrt((1 / 10 + 1 / 9) * 10))


def test_p_is_how_often_chance_does_as_well():
    """Of settings that do not differ, a share p of pairs of five seeds has a smaller p."""
    random = np.random.default_rng(0)
    found = [compare(*random.normal(size=(2, 5))).p for _ in range(2000)]
    for level in (0.05, 0.5):
        spread = 4 * math.sqrt(level * (1 - level) / 2000)
        assert abs(np.mean(np.less(found, level)) - level) < spread


def test_equal_runs_and_a_constant_gain():
    same = compare([1.0, 2.0], [1.0, 2.0])
    assert (same.t, same.p) == (0, 1)
    gain = compare([1.5, 2.5], [1.0, 2.0])
    assert (gain.t, gain.p) == (math.inf, 0)


def test_tables_have_every_run_and_what_follows():
    folds = [{"accuracy": x, "macro_f1": x - 0.1, "other": 0.0} for x in (0.8, 0.9)]
    folds.append({"accuracy": 0.7, "macro_f1": 0.6})
    text = io.StringIO()
    console = Console(file=text, width=100)
    console.print(fold_table(folds, title="Three folds"))
    interval = summarize([0.8, 0.9, 0.7])
    for part in ("Three folds", "accuracy", "macro_f1", "0.9000", "0.6000", "0.1000", "95%"):
        assert part in text.getvalue()
    assert f"{interval.low:.4f} to {interval.high:.4f}" in text.getvalue()
    assert "other" not in text.getvalue()
    console.print(comparison_table({"drug 1": FIRST, "drug 2": SECOND}, what="patient"))
    for part in ("patient", "drug 1", "drug 2", "-1.5800", "-2.4599 to -0.7001", "0.0028"):
        assert part in text.getvalue()


def test_what_has_no_answer_is_an_error():
    with pytest.raises(ValueError, match="1 run.s. have no spread"):
        summarize([1.0])
    with pytest.raises(ValueError, match="every value must be finite"):
        summarize([1.0, math.nan])
    with pytest.raises(ValueError, match="confidence=1.0 in"):
        summarize([1.0, 2.0], confidence=1.0)
    with pytest.raises(ValueError, match="2 and 3 runs"):
        compare([1.0, 2.0], [1.0, 2.0, 3.0])
    for names in ("a", "abc"):
        with pytest.raises(ValueError, match=f"settings {', '.join(names)}: give two"):
            comparison_table(dict.fromkeys(names, FIRST))
    with pytest.raises(ValueError, match="folds=1"):
        fold_overlap(1)
    for runs in ([], [{"loss": 1.0}, {"accuracy": 1.0}]):
        with pytest.raises(ValueError, match=f"{len(runs)} runs have no metric in common"):
            fold_table(runs)
