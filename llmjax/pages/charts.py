"""Charts, each as a PNG and as SVG for a page that may be light or dark."""

import dataclasses
import io
import pathlib
import re
import warnings
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_POINTS = 800
_NUMBERED, _NAMED = 12, 40  # labels of a matrix up to which its cells have numbers, its sides names
_SIZE = (4.5, 2.7)  # inches; drawn near a phone's width, so that its text stays readable there
_ROLES = ("ink", "muted", "grid", "first", "second")
_PRINT: Mapping[str, str] = dict(
    zip(_ROLES, ("#1c2430", "#667085", "#e4e7ec", "#2f6fde", "#d9480f"), strict=True)
)
# Colours that nothing else has stand for the page's CSS variables until the SVG is written.
_STAND_INS: Mapping[str, str] = {role: f"#0102{i:02x}" for i, role in enumerate(_ROLES, start=1)}


@dataclasses.dataclass(frozen=True)
class Curve:
    """Points of a line: its legend, x (steps), y, role of its colour, and whether it is faint.

    `width` is how far an interval reaches to both sides of y, where there is one.
    """

    label: str
    x: np.ndarray
    y: np.ndarray
    role: str = "first"
    faint: bool = False
    dots: bool = False
    width: np.ndarray | None = None


@dataclasses.dataclass(frozen=True)
class Plot:
    """A chart of lines.

    Attributes:
        name: a file name.
        title: with the unit of y.
        curves: the lines.
        scale: the kind of the y axis; "share" says percent.
        x: the name of the x axis; steps are whole numbers.
        log_x: whether x is spread by its logarithm.
        ticks: names of the places 0, 1, ... on the x axis, where they have names.
    """

    name: str
    title: str
    curves: tuple[Curve, ...]
    scale: Literal["linear", "small", "from zero", "log", "share"]
    x: str = "step"
    log_x: bool = False
    ticks: tuple[str, ...] = ()


@dataclasses.dataclass(frozen=True)
class Matrix:
    """A picture of how often each label was taken for each.

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
    """Numbers by name, as bars that lie one below the other.

    Attributes:
        name: a file name.
        title: above it, with the unit.
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


def write(plot: Chart, path: pathlib.Path) -> None:
    """Draws the chart into a PNG or SVG file, by the path's suffix."""
    import matplotlib

    # The same file for the same numbers.
    metadata = {"Date": None} if path.suffix == ".svg" else None
    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": plot.name}):
        figure = _figure(plot, _PRINT)
        figure.savefig(path, dpi=200, facecolor="white", metadata=metadata)


def svg(plot: Chart) -> str:
    """The chart as an <svg> element that takes its colours from the page's CSS variables."""
    import matplotlib

    text = io.StringIO()
    with (
        matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": plot.name}),
        warnings.catch_warnings(),
    ):
        # The reader's fonts draw the text, whatever those here lack.
        warnings.filterwarnings("ignore", "Glyph .* missing from font")
        figure = _figure(plot, _STAND_INS)
        figure.savefig(text, format="svg", transparent=True, metadata={"Date": None})
    element = text.getvalue()
    element = element[element.index("<svg") :]
    element = re.sub(r"<metadata>.*?</metadata>", "", element, flags=re.DOTALL)
    element = re.sub(r' xmlns(:\w+)?="[^"]*"| id="[\w.]+_\d+"', "", element)
    element = element.replace("xlink:href", "href")
    for role, colour in _STAND_INS.items():
        element = element.replace(colour, f"var(--{role})")
    return element.replace("<svg", f'<svg role="img" aria-label="{plot.title}"', 1)


def _figure(plot: Chart, colours: Mapping[str, str]) -> "Figure":
    from matplotlib.figure import Figure  # slow to import; without pyplot there is no global state

    if isinstance(plot, Matrix):
        side = min(max(2.2 + 0.38 * len(plot.labels), 3.2), 9.0)
        figure = Figure(figsize=(side + 0.6, side), layout="constrained")
        _cells(figure.add_subplot(), plot, colours)
        return figure
    if isinstance(plot, Bars):
        height = max(0.9 + 0.24 * len(plot.labels), _SIZE[1])
        figure = Figure(figsize=(_SIZE[0], height), layout="constrained")
        _bars(figure.add_subplot(), plot, colours)
        return figure
    figure = Figure(figsize=_SIZE, layout="constrained")
    axes = figure.add_subplot()
    for curve in plot.curves:
        if curve.x.size:
            axes.plot(
                curve.x,
                curve.y,
                label=curve.label,
                color=colours[curve.role],
                alpha=0.4 if curve.faint else 1.0,
                linewidth=0.8 if curve.faint else 1.6,
                marker="o" if curve.dots or curve.x.size == 1 else None,
                markersize=3.5,
            )
        if curve.width is not None:
            low, high = curve.y - curve.width, curve.y + curve.width
            style: dict[str, Any] = {"color": colours[curve.role], "alpha": 0.18, "linewidth": 0}
            axes.fill_between(curve.x, low, high, **style)
    _style(axes, plot, colours)
    return figure


def _cells(axes: "Axes", plot: Matrix, colours: Mapping[str, str]) -> None:
    """A square for each pair of labels, the darker the larger its share of the true label's."""
    from matplotlib.patches import Rectangle

    size = len(plot.labels)
    shares = plot.counts / np.maximum(plot.counts.sum(axis=1, keepdims=True), 1)
    for row, column in np.ndindex(size, size):
        count, share = plot.counts[row, column], float(shares[row, column])
        if not count:
            continue
        colour = colours["first" if row == column else "second"]
        place = (column - 0.5, row - 0.5)
        axes.add_patch(Rectangle(place, 1, 1, facecolor=colour, alpha=0.08 + 0.52 * share))
        if size <= _NUMBERED:
            text = f"{count:,}\n{share:.0%}"
            style: dict[str, Any] = {
                "ha": "center",
                "va": "center",
                "color": colours["ink"],
                "fontsize": 7.5,
            }
            axes.text(column, row, text, **style)
    axes.set(xlim=(-0.5, size - 0.5), ylim=(size - 0.5, -0.5), aspect="equal")
    axes.set_title(plot.title, loc="left", color=colours["ink"], fontsize=10, weight="bold", pad=8)
    axes.set_xlabel("chosen", color=colours["muted"], fontsize=9)
    axes.set_ylabel("true", color=colours["muted"], fontsize=9)
    named = size <= _NAMED
    ticks = range(size) if named else []
    long = max(map(len, plot.labels), default=0) * size > 40
    names = [_short(label) for label in plot.labels] if named else []
    axes.set_xticks(ticks, names, rotation=90 if long else 0, parse_math=False)
    axes.set_yticks(ticks, names, parse_math=False)
    axes.tick_params(which="both", colors=colours["muted"], labelsize=8, length=0)
    for spine in axes.spines.values():
        spine.set_color(colours["grid"])


def _bars(axes: "Axes", plot: Bars, colours: Mapping[str, str]) -> None:
    from matplotlib.ticker import MaxNLocator, PercentFormatter

    places = np.arange(len(plot.labels), dtype=float)
    left = np.zeros(len(plot.labels))
    height = 0.68 if plot.stacked else 0.76 / len(plot.series)
    for index, (label, values) in enumerate(plot.series):
        shift = 0.0 if plot.stacked else (index - (len(plot.series) - 1) / 2) * height
        role = ("first", "second", "muted")[index % 3]
        style: dict[str, Any] = {"color": colours[role], "label": label, "height": height}
        axes.barh(places + shift, values, left=left if plot.stacked else None, **style)
        left = left + values
    _frame(axes, plot.title, colours)
    axes.set_yticks(places, [_short(label) for label in plot.labels], parse_math=False)
    axes.invert_yaxis()
    axes.grid(axis="x", color=colours["grid"], linewidth=0.8)
    axes.xaxis.set_major_locator(MaxNLocator(5))
    axes.xaxis.set_major_formatter(
        PercentFormatter(1.0) if plot.share else lambda value, _: f"{value:,.6g}"
    )
    if len(plot.series) > 1:
        _legend(axes, colours)


def _short(label: str) -> str:
    return label if len(label) <= 20 else f"{label[:19]}…"


def _style(axes: "Axes", plot: Plot, colours: Mapping[str, str]) -> None:
    from matplotlib.ticker import LogLocator, MaxNLocator, NullFormatter, PercentFormatter

    _frame(axes, plot.title, colours)
    axes.set_xlabel(plot.x, color=colours["muted"], fontsize=9)
    if plot.x == "step":
        axes.xaxis.set_major_locator(MaxNLocator(6, integer=True))
        axes.xaxis.set_major_formatter(lambda step, _: f"{step:,.0f}")
    if plot.ticks:
        names = [_short(tick) for tick in plot.ticks]
        axes.set_xticks(range(len(names)), names, rotation=35, ha="right", parse_math=False)
    axes.grid(axis="y", color=colours["grid"], linewidth=0.8)
    axes.margins(x=0.02)
    if plot.log_x and all((curve.x > 0).all() for curve in plot.curves):
        axes.set_xscale("log")
    if plot.scale == "log" and all((curve.y > 0).all() for curve in plot.curves):
        axes.set_yscale("log")
        axes.yaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
        axes.yaxis.set_major_formatter(lambda value, _: f"{value:g}")
        axes.yaxis.set_minor_formatter(NullFormatter())
    elif plot.scale == "from zero":
        axes.set_ylim(bottom=0)
        axes.yaxis.set_major_formatter(lambda value, _: f"{value:,.0f}")
    elif plot.scale == "share":
        axes.set_ylim(bottom=0)
        axes.yaxis.set_major_formatter(PercentFormatter(1.0))
    elif plot.scale == "small":
        axes.yaxis.set_major_formatter(lambda value, _: f"{value:.1e}" if value else "0")
    if len({curve.role for curve in plot.curves if curve.x.size}) > 1:
        _legend(axes, colours)


def _frame(axes: "Axes", title: str, colours: Mapping[str, str]) -> None:
    axes.set_title(title, loc="left", color=colours["ink"], fontsize=10, weight="bold", pad=8)
    axes.tick_params(which="both", colors=colours["muted"], labelsize=8.5, length=0)
    axes.set_axisbelow(True)
    axes.spines[["top", "right", "left"]].set_visible(False)
    axes.spines["bottom"].set_color(colours["grid"])


def _legend(axes: "Axes", colours: Mapping[str, str]) -> None:
    axes.legend(frameon=False, fontsize=8.5, labelcolor=colours["ink"])
