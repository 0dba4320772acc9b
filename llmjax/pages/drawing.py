"""Renders charts as PNG or SVG files, and as inline SVG for a page with light and dark themes.

matplotlib is imported where it is used, because importing it takes half a second. Figures are made
without pyplot, which would keep them in global state.
"""

import html
import io
import math
import pathlib
import re
import warnings
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, get_args

import numpy as np

from llmjax.pages.charts import SERIES, Bars, Chart, Curve, Matrix, Plot, Role

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Colours = Mapping[Role, str]

_SUFFIXES = (".png", ".svg")
_NUMBERED, _NAMED = 12, 40  # most labels with which a matrix has numbers in cells, names on axes
_SIZE = (4.5, 2.7)  # inches; close to a phone's width, so that text stays readable there
_INSIDE = 3  # most legend entries that fit between the curves
_COLUMNS = 3  # of a legend below the chart
_LETTERS = 40  # of names that fit in one line below the x axis
_ROLES: tuple[Role, ...] = get_args(Role)
_PRINT: Colours = dict(
    zip(
        _ROLES,
        ("#1c2430", "#667085", "#e4e7ec", "#2f6fde", "#d9480f", "#0b8a6f", "#8b44c4"),
        strict=True,
    )
)
# Unique placeholder colours, replaced by the page's CSS variables in the finished SVG.
_STAND_INS: Colours = {role: f"#0102{i:02x}" for i, role in enumerate(_ROLES, start=1)}
_SUPERSCRIPTS = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")


def write(chart: Chart, path: pathlib.Path) -> None:
    """Renders a chart into a file, dark on white; equal data gives equal files.

    Args:
        chart: the chart.
        path: a .png or .svg file.

    Raises:
        ValueError: another file type.
    """
    if path.suffix not in _SUFFIXES:
        raise ValueError(f"{path}: a chart is written as {' or '.join(_SUFFIXES)}")
    metadata = {"Date": None} if path.suffix == ".svg" else None
    with _settings(chart):
        figure = _figure(chart, _PRINT)
        figure.savefig(path, dpi=200, facecolor="white", metadata=metadata)


def svg(chart: Chart) -> str:
    """The chart as an <svg> element whose colours are the page's CSS variables."""
    text = io.StringIO()
    with _settings(chart), warnings.catch_warnings():
        # The reader's fonts draw the text, so a glyph missing here does not matter.
        warnings.filterwarnings("ignore", "Glyph .* missing from font")
        figure = _figure(chart, _STAND_INS)
        figure.savefig(text, format="svg", transparent=True, metadata={"Date": None})
    element = text.getvalue()
    element = element[element.index("<svg") :]
    element = re.sub(r"<metadata>.*?</metadata>", "", element, flags=re.DOTALL)
    element = re.sub(r' xmlns(:\w+)?="[^"]*"| id="[\w.]+_\d+"', "", element)
    element = element.replace("xlink:href", "href")
    for role, colour in _STAND_INS.items():
        element = element.replace(colour, f"var(--{role})")
    title = html.escape(chart.title)
    return element.replace("<svg", f'<svg role="img" aria-label="{title}"', 1)


def _settings(chart: Chart) -> Any:
    """Keeps text as text, and derives ids from the chart's name: unique on a page, reproducible."""
    import matplotlib

    return matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": chart.name})


def _figure(chart: Chart, colours: Colours) -> "Figure":
    from matplotlib.figure import Figure

    width, height = _SIZE
    if isinstance(chart, Matrix):
        side = min(max(2.2 + 0.38 * len(chart.labels), 3.2), 9.0)
        width, height = side + 0.6, side
    elif isinstance(chart, Bars):
        height = max(0.9 + 0.24 * len(chart.labels), height)
    elif (entries := sum(bool(curve.label) for curve in chart.curves)) > _INSIDE:
        height += 0.22 * math.ceil(entries / _COLUMNS)
    figure = Figure(figsize=(width, height), layout="constrained")
    axes = figure.add_subplot()
    axes.set_title(chart.title, loc="left", color=colours["ink"], fontsize=10, weight="bold", pad=8)
    axes.tick_params(which="both", colors=colours["muted"], labelsize=8.5, length=0)
    axes.set_axisbelow(True)
    axes.spines[["top", "right", "left"]].set_visible(False)
    axes.spines["bottom"].set_color(colours["grid"])
    if isinstance(chart, Matrix):
        _cells(axes, chart, colours)
    elif isinstance(chart, Bars):
        _bars(axes, chart, colours)
    else:
        _curves(axes, chart, colours)
    _legend(axes, colours)
    return figure


def _curves(axes: "Axes", plot: Plot, colours: Colours) -> None:
    for curve in plot.curves:
        if curve.x.size:
            _curve(axes, curve, colours[curve.role])
    _x_axis(axes, plot, colours)
    _y_axis(axes, plot)
    axes.grid(axis="y", color=colours["grid"], linewidth=0.8)


def _curve(axes: "Axes", curve: Curve, colour: str) -> None:
    lone = {"points": "o", "crosses": "x"}.get(curve.mark)
    pointed = curve.mark == "line and points" or curve.x.size == 1
    axes.plot(
        curve.x,
        curve.y,
        label=curve.label or "_",  # matplotlib leaves "_" out of legends
        color=colour,
        alpha=curve.strength,
        linestyle="none" if lone else "--" if curve.mark == "dashes" else "-",
        linewidth=0.8 + 0.8 * max(2 * curve.strength - 1, 0),
        drawstyle="steps-post" if curve.mark == "steps" else None,
        marker=lone or ("o" if pointed else None),
        markersize=3.5 if pointed else 4.0,
    )
    if curve.band is not None:
        axes.fill_between(curve.x, *curve.band, color=colour, alpha=0.18, linewidth=0)


def _x_axis(axes: "Axes", plot: Plot, colours: Colours) -> None:
    from matplotlib.ticker import MaxNLocator

    axes.set_xlabel(plot.x, color=colours["muted"], fontsize=9)
    axes.margins(x=0.02)
    shown = [curve.x for curve in plot.curves if curve.x.size]
    if plot.ticks:
        names = [_short(tick) for tick in plot.ticks]
        level = sum(map(len, names)) <= _LETTERS
        turned: dict[str, Any] = {} if level else {"rotation": 35, "ha": "right"}
        axes.set_xticks(range(len(names)), names, parse_math=False, **turned)
        axes.set_xlim(-0.5, len(names) - 0.5)
    elif plot.log_x and all((x > 0).all() for x in shown):
        axes.set_xscale("log")
        _log_ticks(axes.xaxis)
    else:
        whole = all((x == np.round(x)).all() for x in shown)  # such as steps: no fractional ticks
        axes.xaxis.set_major_locator(MaxNLocator(6, integer=whole))
        axes.xaxis.set_major_formatter(lambda value, _: f"{value:,.6g}")


def _y_axis(axes: "Axes", plot: Plot) -> None:
    from matplotlib.ticker import PercentFormatter

    if plot.scale == "log" and all((curve.y > 0).all() for curve in plot.curves):
        axes.set_yscale("log")
        _log_ticks(axes.yaxis)
    elif plot.scale == "from zero":
        axes.yaxis.set_major_formatter(lambda value, _: f"{value:,.6g}")
    elif plot.scale in ("percent", "share"):
        axes.yaxis.set_major_formatter(PercentFormatter(1.0))
    elif plot.scale == "small":
        axes.yaxis.set_major_formatter(lambda value, _: f"{value:.1e}" if value else "0")
    if plot.scale in ("from zero", "share"):
        axes.set_ylim(bottom=0)


def _log_ticks(axis: Any) -> None:
    """Ticks at powers of ten, with ticks between them on a short range."""
    from matplotlib.ticker import LogLocator, NullFormatter

    low, high = axis.get_view_interval()
    subs = (1.0,) if high / low > 1e3 else (1.0, 2.0, 5.0)
    plain = low > 5e-4 and high < 2e6
    axis.set_major_locator(LogLocator(subs=subs, numticks=7))
    axis.set_major_formatter(lambda value, _: f"{value:,.6g}" if plain else _power(value))
    axis.set_minor_formatter(NullFormatter())


def _power(value: float) -> str:
    """A positive number in powers of ten, such as 10⁹ and 2·10⁻⁵."""
    exponent = math.floor(math.log10(value) + 1e-9)
    factor = f"{value / 10.0**exponent:.3g}"
    power = f"10{str(exponent).translate(_SUPERSCRIPTS)}"
    return power if factor == "1" else f"{factor}·{power}"


def _cells(axes: "Axes", plot: Matrix, colours: Colours) -> None:
    """A square per pair of labels, darker for a larger share of the true label."""
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
            style: dict[str, Any] = {"ha": "center", "va": "center", "fontsize": 7.5}
            axes.text(column, row, text, color=colours["ink"], **style)
    axes.set(xlim=(-0.5, size - 0.5), ylim=(size - 0.5, -0.5), aspect="equal")
    axes.set_xlabel("predicted", color=colours["muted"], fontsize=9)
    axes.set_ylabel("true", color=colours["muted"], fontsize=9)
    ticks = range(size) if size <= _NAMED else []
    names = [_short(plot.labels[tick]) for tick in ticks]
    long = max(map(len, plot.labels), default=0) * size > _LETTERS
    axes.set_xticks(ticks, names, rotation=90 if long else 0, parse_math=False)
    axes.set_yticks(ticks, names, parse_math=False)
    axes.spines[:].set_visible(True)
    axes.spines[:].set_color(colours["grid"])


def _bars(axes: "Axes", plot: Bars, colours: Colours) -> None:
    from matplotlib.ticker import MaxNLocator, PercentFormatter

    places = np.arange(len(plot.labels), dtype=float)
    left = np.zeros(len(plot.labels))
    height = 0.68 if plot.stacked else 0.76 / len(plot.series)
    for index, (label, values) in enumerate(plot.series):
        shift = 0.0 if plot.stacked else (index - (len(plot.series) - 1) / 2) * height
        colour = colours[SERIES[index % len(SERIES)]]
        style: dict[str, Any] = {"color": colour, "label": label, "height": height}
        axes.barh(places + shift, values, left=left if plot.stacked else None, **style)
        left = left + values
    axes.set_yticks(places, [_short(label) for label in plot.labels], parse_math=False)
    axes.invert_yaxis()
    axes.grid(axis="x", color=colours["grid"], linewidth=0.8)
    axes.xaxis.set_major_locator(MaxNLocator(5))
    axes.xaxis.set_major_formatter(
        PercentFormatter(1.0) if plot.share else lambda value, _: f"{value:,.6g}"
    )


def _short(label: str) -> str:
    return label if len(label) <= 20 else f"{label[:19]}…"


def _legend(axes: "Axes", colours: Colours) -> None:
    """A small legend goes between the curves, a large one below; a single entry needs none."""
    handles, labels = axes.get_legend_handles_labels()
    style: dict[str, Any] = {"frameon": False, "fontsize": 8.5, "labelcolor": colours["ink"]}
    if 1 < len(labels) <= _INSIDE:
        axes.legend(handles, labels, **style)
    elif len(labels) > _INSIDE:
        axes.figure.legend(handles, labels, loc="outside lower center", ncols=_COLUMNS, **style)
