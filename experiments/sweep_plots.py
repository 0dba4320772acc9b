"""A search as tables and pictures."""

import math
import pathlib
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from rich.table import Table

from experiments.search_space import Dimension
from experiments.sweeper import Trial, show
from llmjax.train.early_stopping import Direction

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_INK, _MUTED, _GRID, _COMPLETE, _PRUNED = "#1c2430", "#667085", "#e4e7ec", "#2f6fde", "#d9480f"
_COLUMNS = 3  # panels in a row


def table(
    trials: Sequence[Trial], space: Sequence[Dimension], metric: str, rows: int = 10
) -> Table:
    """The best trials, for the terminal.

    Args:
        trials: best first.
        space: the fields.
        metric: what they are judged by.
        rows: how many to show.
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
        value = "" if math.isnan(trial.value) else f"{trial.value:.4f}"
        values = (show(trial.values[d.name]) if d.name in trial.values else "" for d in space)
        steps = f"{trial.steps[-1]:,}" if trial.steps else ""
        state = "" if trial.state == "complete" else trial.state
        shown.add_row(str(trial.number), value, *values, steps, state)
    return shown


def draw(
    path: pathlib.Path,
    trials: Sequence[Trial],
    space: Sequence[Dimension],
    metric: str,
    direction: Direction,
) -> None:
    """Draws the search's history, the trials' curves, and the metric along each field.

    Args:
        path: a PNG file.
        trials: in any order.
        space: the fields.
        metric: what the trials are judged by.
        direction: whether its lowest or its highest is the best.
    """
    from matplotlib.figure import Figure  # slow to import

    valued = sorted((t for t in trials if not math.isnan(t.value)), key=lambda trial: trial.number)
    rows = math.ceil((len(space) + 2) / _COLUMNS)
    figure = Figure(figsize=(3.6 * _COLUMNS, 2.8 * rows), layout="constrained")
    panels = iter(figure.subplots(rows, _COLUMNS, squeeze=False).flat)
    _history(next(panels), valued, metric, direction)
    _curves(next(panels), valued, metric, direction)
    for dimension in space:
        _slice(next(panels), valued, dimension, metric)
    for panel in panels:
        panel.set_visible(False)
    figure.savefig(path, dpi=160, facecolor="white")


def _history(axes: "Axes", trials: Sequence[Trial], metric: str, direction: Direction) -> None:
    from matplotlib.ticker import MaxNLocator

    best = (np.minimum if direction == "min" else np.maximum).accumulate
    numbers, values = [t.number for t in trials], [t.value for t in trials]
    _dots(axes, trials, numbers)
    if trials:
        axes.step(numbers, best(values), where="post", color=_INK, linewidth=1.2, label="best")
    axes.legend(frameon=False, fontsize=8, labelcolor=_INK)
    axes.xaxis.set_major_locator(MaxNLocator(6, integer=True))
    _style(axes, "History", "trial", metric)


def _curves(axes: "Axes", trials: Sequence[Trial], metric: str, direction: Direction) -> None:
    """Evaluations of every trial, the best one's on top."""
    choose = min if direction == "min" else max
    best = choose(trials, key=lambda trial: trial.value, default=None)
    for trial in trials:
        leads = trial is best
        axes.plot(
            trial.steps,
            trial.curve,
            color=_COMPLETE if trial.state == "complete" else _PRUNED,
            alpha=1.0 if leads else 0.3,
            linewidth=2.0 if leads else 0.9,
            marker="o" if leads or len(trial.steps) == 1 else None,
            markersize=3,
            zorder=3 if leads else 2,
        )
    _style(axes, "Evaluations, the best bold", "step", metric)


def _slice(axes: "Axes", trials: Sequence[Trial], dimension: Dimension, metric: str) -> None:
    values: list[Any] = [trial.values[dimension.name] for trial in trials]
    if dimension.kind == "choice":
        spread = np.random.default_rng(0).uniform(-0.12, 0.12, len(values))
        places = [dimension.choices.index(value) for value in values] + spread
        axes.set_xticks(range(len(dimension.choices)), dimension.choices, parse_math=False)
        axes.set_xlim(-0.5, len(dimension.choices) - 0.5)
        _dots(axes, trials, places)
    else:
        _dots(axes, trials, values)
        if dimension.log:
            axes.set_xscale("log")
    _style(axes, dimension.name, "", metric)


def _dots(axes: "Axes", trials: Sequence[Trial], places: Any) -> None:
    for state, colour, marker in (("complete", _COMPLETE, "o"), ("pruned", _PRUNED, "x")):
        chosen = [index for index, trial in enumerate(trials) if trial.state == state]
        x = [places[index] for index in chosen]
        y = [trials[index].value for index in chosen]
        axes.scatter(x, y, s=22, c=colour, marker=marker, linewidths=1.2, label=state, zorder=3)


def _style(axes: "Axes", title: str, x: str, y: str) -> None:
    axes.set_title(title, loc="left", color=_INK, fontsize=9.5, weight="bold")
    axes.set_xlabel(x, color=_MUTED, fontsize=8.5)
    axes.set_ylabel(y, color=_MUTED, fontsize=8.5)
    axes.tick_params(which="both", colors=_MUTED, labelsize=8, length=0)
    axes.grid(color=_GRID, linewidth=0.8)
    axes.set_axisbelow(True)
    axes.spines[["top", "right", "left"]].set_visible(False)
    axes.spines["bottom"].set_color(_GRID)
