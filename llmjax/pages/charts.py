"""What charts show, as plain data; `drawing` turns them into PNG and SVG files."""

import dataclasses
from typing import Literal

import numpy as np

# Colours by what they are for; pages and prints each have their own for these.
Role = Literal["ink", "muted", "grid", "first", "second", "third", "fourth"]
SERIES: tuple[Role, ...] = ("first", "second", "third", "fourth")

Mark = Literal["line", "line and points", "dashes", "steps", "points", "crosses"]
Scale = Literal["linear", "small", "from zero", "log", "percent", "share"]

_POINTS = 800


@dataclasses.dataclass(frozen=True)
class Curve:
    """Points of a chart, with or without a line through them.

    Attributes:
        label: its entry in the legend; "" has none.
        x: [N].
        y: [N].
        role: its colour.
        mark: how its points are drawn; "steps" holds each value until the next.
        strength: opacity of its line, of at most 1; weaker lines are thinner too.
        band: lower and upper ends [N] of an interval around y, where there is one.
    """

    label: str
    x: np.ndarray
    y: np.ndarray
    role: Role = "first"
    mark: Mark = "line"
    strength: float = 1.0
    band: tuple[np.ndarray, np.ndarray] | None = None


FAINT = 0.4  # strength of what stands behind something else


@dataclasses.dataclass(frozen=True)
class Plot:
    """A chart of curves.

    Attributes:
        name: a file name.
        title: what y is, with its unit.
        curves: in the order of the legend; later ones are drawn over earlier ones.
        scale: the kind of the y axis; "percent" and "share" say shares in percent, "share" from 0.
        x: what x is, with its unit.
        log_x: whether the x axis is logarithmic.
        ticks: names of the places 0, 1, ... on the x axis, where they have names.
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
    """A heat map of how often each label was taken for each.

    Attributes:
        name: a file name.
        title: above it.
        counts: [N, N]; rows are true labels, columns those that were chosen.
        labels: N names.
    """

    name: str
    title: str
    counts: np.ndarray
    labels: tuple[str, ...]


@dataclasses.dataclass(frozen=True)
class Bars:
    """Numbers by name, as horizontal bars, the first on top.

    Attributes:
        name: a file name.
        title: what the numbers are, with their unit.
        labels: N names.
        series: what the bars of a name are called, each with its N numbers.
        stacked: whether a name's bars go on where the one before ends, or lie side by side.
        share: whether the numbers are shares, said as percent.
    """

    name: str
    title: str
    labels: tuple[str, ...]
    series: tuple[tuple[str, np.ndarray], ...]
    stacked: bool = False
    share: bool = False


Chart = Plot | Matrix | Bars


def thin(curve: Curve) -> Curve:
    """A curve of at most 800 points, each the mean of its neighbourhood."""
    if curve.x.size <= _POINTS:
        return curve
    x, y = (
        np.array([part.mean() for part in np.array_split(values, _POINTS)])
        for values in (curve.x, curve.y)
    )
    return dataclasses.replace(curve, x=x, y=y)
