"""Charts as plain data; `drawing` renders them as PNG and SVG."""

import dataclasses
from typing import Literal

import numpy as np

# Colours by purpose; pages and print each define their own.
Role = Literal["ink", "muted", "grid", "first", "second", "third", "fourth"]
SERIES: tuple[Role, ...] = ("first", "second", "third", "fourth")

Mark = Literal["line", "line and points", "dashes", "steps", "points", "crosses"]
Scale = Literal["linear", "small", "from zero", "log", "percent", "share"]

_POINTS = 800


@dataclasses.dataclass(frozen=True)
class Curve:
    """Points of a chart, with or without a connecting line.

    Attributes:
        label: its legend entry; "" for none.
        x: [N].
        y: [N].
        role: its colour.
        mark: how it is drawn; "steps" holds each value until the next.
        strength: opacity of the line, up to 1; weaker lines are also thinner.
        band: lower and upper ends [N] of an interval around y, if any.
    """

    label: str
    x: np.ndarray
    y: np.ndarray
    role: Role = "first"
    mark: Mark = "line"
    strength: float = 1.0
    band: tuple[np.ndarray, np.ndarray] | None = None


FAINT = 0.4  # strength of curves in the background


@dataclasses.dataclass(frozen=True)
class Plot:
    """A chart of curves.

    Attributes:
        name: the file name.
        title: quantity and unit of y.
        curves: curves in legend order; later ones are drawn over earlier ones.
        scale: the y axis; "percent" and "share" show fractions in percent, "share" from 0.
        x: quantity and unit of x.
        log_x: whether the x axis is logarithmic.
        ticks: names of the positions 0, 1, ... on the x axis, if they have names.
    """

    name: str
    title: str
    curves: tuple[Curve, ...]
    scale: Scale = "linear"
    x: str = "step"
    log_x: bool = False
    ticks: tuple[str, ...] = ()


@dataclasses.dataclass(frozen=True)
class Matrix:
    """A heat map of a confusion matrix.

    Attributes:
        name: the file name.
        title: title of the chart.
        counts: [N, N]; rows are true labels, columns predicted ones.
        labels: N names.
    """

    name: str
    title: str
    counts: np.ndarray
    labels: tuple[str, ...]


@dataclasses.dataclass(frozen=True)
class Bars:
    """Numbers by name as horizontal bars, the first on top.

    Attributes:
        name: the file name.
        title: quantity and unit.
        labels: N names.
        series: (name, N numbers) of each series.
        stacked: whether the bars of a label are stacked instead of side by side.
        share: whether the numbers are fractions, shown in percent.
    """

    name: str
    title: str
    labels: tuple[str, ...]
    series: tuple[tuple[str, np.ndarray], ...]
    stacked: bool = False
    share: bool = False


Chart = Plot | Matrix | Bars


def thin(curve: Curve) -> Curve:
    """Reduces a curve to at most 800 points, each the mean of its neighbourhood."""
    if curve.x.size <= _POINTS:
        return curve
    x, y = (
        np.array([part.mean() for part in np.array_split(values, _POINTS)])
        for values in (curve.x, curve.y)
    )
    return dataclasses.replace(curve, x=x, y=y)
