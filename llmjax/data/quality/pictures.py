"""The charts of a report."""

import dataclasses
from collections.abc import Sequence

import numpy as np

from llmjax.data.quality import metrics
from llmjax.data.quality.measuring import FAMILIES, Quality
from llmjax.data.quality.survey import Report
from llmjax.pages.charts import FAINT, Bars, Chart, Curve, Plot, Role, Scale

# The charts over the steps: family, metric and scale.
_OVER_STEPS: tuple[tuple[str, str, Scale], ...] = (
    ("language", "unknown_words", "share"),
    ("duplication", "near_copies", "share"),
    ("density", "compression", "linear"),
    ("density", "word_entropy", "linear"),
)


def charts_of(report: Report) -> list[Chart]:
    """All charts for which there is data."""
    cleaned = len(report.total.stages) > 1
    found: list[Chart] = []
    if cleaned:
        found.append(_left(report))
    if len(report.sources) > 1:
        found.append(_sources(report))
    found += [_lengths(report), _growth(report)]
    if len(report.total.stages) > 2:
        found += [chart for o in _OVER_STEPS if (chart := _over_steps(report, *o))]
    if report.topics:
        found.append(_topics(report))
    return [chart for chart in found if not isinstance(chart, Plot) or chart.curves]


def _left(report: Report) -> Bars:
    """Documents left after each step, and those that it removed."""
    stages = report.total.stages
    left = np.array([stage.quality.amount.documents for stage in stages], float)
    gone = np.concatenate([[0.0], np.maximum(left[:-1] - left[1:], 0)])
    labels = tuple(stage.name for stage in stages)
    series = (("left", left), ("removed", gone))
    return Bars("left", "Documents left after each step", labels, series, stacked=True)


def _sources(report: Report) -> Bars:
    labels = tuple(source.name or "unnamed" for source in report.sources)
    series = [("raw", np.array([s.raw.amount.bytes for s in report.sources]) / 1e6)]
    if len(report.total.stages) > 1:
        kept = np.array([s.cleaned.amount.bytes for s in report.sources]) / 1e6
        series = [("cleaned", kept), *series]
    return Bars("sources", "Text by source (MB)", labels, tuple(series))


def _lengths(report: Report) -> Plot:
    curves = []
    for label, role, quality in _both(report):
        counts = np.array(quality.lengths[1:], float)
        if total := counts.sum():
            middle = 2.0 ** (np.arange(len(counts)) + 0.5)  # of the bin [2^n, 2^(n+1))
            curves.append(Curve(label, middle, counts / total, role, "line and points"))
    title = "Lengths (share of documents)"
    return Plot("lengths", title, tuple(curves), "share", x="words", log_x=True)


def _growth(report: Report) -> Plot:
    curves = []
    for label, role, quality in _both(report):
        if len(quality.growth.words) > 1:
            words = np.array(quality.growth.words, float)
            vocabulary = np.array(quality.growth.vocabulary, float)
            curves.append(Curve(label, words, vocabulary, role, "line and points"))
    title = "Vocabulary (distinct words)"
    return Plot("growth", title, tuple(curves), "log", x="words of text", log_x=True)


def _over_steps(report: Report, family: str, name: str, scale: Scale) -> Plot | None:
    """A metric after each step: over all sources, and faintly for each source."""
    (one,) = (m for m in metrics.of(FAMILIES[family][1]) if m.name == name)
    curves = []
    several = len(report.sources) > 1
    for number, source in enumerate(report.sources if several else ()):
        label = "" if number else "each source"  # one legend entry for all sources
        qualities = [stage.quality for stage in source.stages]
        course = _course(label, qualities, family, name)
        curves.append(dataclasses.replace(course, role="muted", strength=FAINT))
    qualities = [stage.quality for stage in report.total.stages]
    curves.append(_course("all", qualities, family, name))
    known = tuple(curve for curve in curves if len(curve.x))
    ticks = tuple(stage.name for stage in report.total.stages)
    return Plot(name, one.title, known, scale, x="", ticks=ticks) if known else None


def _course(label: str, qualities: Sequence[Quality], family: str, name: str) -> Curve:
    values = [getattr(getattr(quality, family), name) for quality in qualities]
    known = [(place, value) for place, value in enumerate(values) if value is not None]
    x, y = np.array(known, float).reshape(-1, 2).T
    return Curve(label, x, y)


def _topics(report: Report) -> Bars:
    labels = tuple(" ".join(topic.words[:2]) for topic in report.topics)
    series = tuple(
        (label, np.array(quality.topics)) for label, _, quality in _both(report) if quality.topics
    )
    return Bars("topics", "Topics (share of a sample)", labels, series, share=True)


def _both(report: Report) -> list[tuple[str, Role, Quality]]:
    """(legend, colour, quality) of the cleaned text, if any, and of the raw text."""
    if len(report.total.stages) == 1:
        return [("raw", "first", report.total.raw)]
    return [("cleaned", "first", report.total.cleaned), ("raw", "second", report.total.raw)]
