"""Reports of a sweep: a table for the terminal, and a page with charts."""

import collections
import dataclasses
import math
from collections.abc import Sequence

import numpy as np
from rich.table import Table

from experiments.search_space import Dimension
from experiments.sweeper import Trial, show
from llmjax.pages import charts, drawing, page
from llmjax.train.early_stopping import EarlyStoppingConfig

_WEAK = 0.3  # strength of trials that are not the best
_SHOWN = 100  # trials on the page
_STATES: dict[str, tuple[charts.Role, charts.Mark]] = {
    "complete": ("first", "points"),
    "pruned": ("second", "crosses"),
}


def table(
    trials: Sequence[Trial], space: Sequence[Dimension], metric: str, rows: int = 10
) -> Table:
    """The best trials, for the terminal.

    Args:
        trials: best first.
        space: the fields.
        metric: the metric that trials are judged by.
        rows: number of rows to show.
    """
    title = f"{min(rows, len(trials))} best of {len(trials)} trials"
    shown = Table("trial", title=title, title_justify="left")
    shown.add_column(metric, justify="right", no_wrap=True)
    ends = [dimension.leaf.path[-1] for dimension in space]
    for dimension, end in zip(space, ends, strict=True):
        name = end if ends.count(end) == 1 else dimension.name
        shown.add_column(name, justify="right", overflow="fold")
    shown.add_column("steps", justify="right")
    shown.add_column("")
    for trial in trials[:rows]:
        shown.add_row(*_cells(trial, space))
    return shown


def render(
    name: str, trials: Sequence[Trial], space: Sequence[Dimension], watched: EarlyStoppingConfig
) -> str:
    """The page's HTML.

    Args:
        name: the recipe's name.
        trials: best first.
        space: the fields.
        watched: the metric that trials are judged by.
    """
    head = ("Trial", watched.metric, *(dimension.name for dimension in space), "Steps", "")
    rows = [map(page.text, _cells(trial, space)) for trial in trials[:_SHOWN]]
    drawn = [drawing.svg(chart) for chart in charts_of(trials, space, watched)]
    sections = [
        page.header("Search report", name, "", _figures(trials, watched)),
        page.section("The search", page.plots(drawn)),
        page.section("Trials, best first", page.table(head, [tuple(row) for row in rows])),
    ]
    return page.render(name, sections, "Written by llmjax; the trials are in study.db.")


def charts_of(
    trials: Sequence[Trial], space: Sequence[Dimension], watched: EarlyStoppingConfig
) -> list[charts.Plot]:
    """The search's history, the trials' evaluations, and the metric along each field.

    Args:
        trials: best first.
        space: the fields.
        watched: the metric that trials are judged by.
    """
    valued = [t for t in trials if t.state in _STATES and not math.isnan(t.value)]
    if not valued:
        return []
    found = [_history(valued, watched), _evaluations(valued, watched.metric)]
    return found + [_along(valued, dimension, watched.metric) for dimension in space]


def _figures(trials: Sequence[Trial], watched: EarlyStoppingConfig) -> list[tuple[str, str, str]]:
    counts = collections.Counter(trial.state for trial in trials)
    note = ", ".join(f"{count:,} {state}" for state, count in sorted(counts.items()))
    best = next((trial for trial in trials if not math.isnan(trial.value)), None)
    found = [("Trials", f"{len(trials):,}", note)]
    if best:
        found.insert(0, (f"Best {watched.metric}", f"{best.value:.4f}", f"trial {best.number}"))
    return found


def _cells(trial: Trial, space: Sequence[Dimension]) -> list[str]:
    value = "" if math.isnan(trial.value) else f"{trial.value:.4f}"
    values = (show(trial.values[d.name]) if d.name in trial.values else "" for d in space)
    steps = f"{trial.steps[-1]:,}" if trial.steps else ""
    return [
        str(trial.number),
        value,
        *values,
        steps,
        "" if trial.state == "complete" else trial.state,
    ]


def _history(trials: Sequence[Trial], watched: EarlyStoppingConfig) -> charts.Plot:
    best = (np.minimum if watched.direction == "min" else np.maximum).accumulate
    ordered = sorted(trials, key=lambda trial: trial.number)
    numbers = np.array([trial.number for trial in ordered])
    values = np.array([trial.value for trial in ordered])
    line = charts.Curve("best", numbers, best(values), "ink", "steps")
    curves = (line, *_dots(ordered, numbers))
    return charts.Plot("history", f"{watched.metric} of each trial", curves, x="trial")


def _evaluations(trials: Sequence[Trial], metric: str) -> charts.Plot:
    """The evaluations of every trial, with the best one's on top."""
    curves = []
    for trial in reversed(trials):
        role, _ = _STATES[trial.state]
        steps, values = np.array(trial.steps), np.array(trial.curve)
        curves.append(charts.Curve("", steps, values, role, strength=_WEAK))
    curves[-1] = dataclasses.replace(curves[-1], mark="line and points", strength=1.0)
    return charts.Plot("evaluations", f"{metric} by step (best trial bold)", tuple(curves))


def _along(trials: Sequence[Trial], dimension: Dimension, metric: str) -> charts.Plot:
    values = [trial.values[dimension.name] for trial in trials]
    if dimension.kind == "choice":
        spread = np.random.default_rng(0).uniform(-0.12, 0.12, len(values))
        x = np.array([dimension.choices.index(str(value)) for value in values]) + spread
    else:
        x = np.array(values, float)
    return charts.Plot(
        dimension.name,
        metric,
        _dots(trials, x),
        x=dimension.name,
        log_x=dimension.log,
        ticks=dimension.choices,
    )


def _dots(trials: Sequence[Trial], x: np.ndarray) -> tuple[charts.Curve, ...]:
    """The metric of each trial, by its state."""
    curves = []
    for state, (role, mark) in _STATES.items():
        chosen = [index for index, trial in enumerate(trials) if trial.state == state]
        y = np.array([trials[index].value for index in chosen])
        if chosen:
            curves.append(charts.Curve(state, x[chosen], y, role, mark))
    return tuple(curves)
