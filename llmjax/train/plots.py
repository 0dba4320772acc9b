"""The charts of a run, each as a PNG and as SVG for a page that may be light or dark."""

import dataclasses
import io
import pathlib
import re
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from llmjax.train.metrics import Record

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
    """Points of a line: its legend, x (steps), y, role of its colour, and whether it is faint."""

    label: str
    x: np.ndarray
    y: np.ndarray
    role: str = "first"
    faint: bool = False
    dots: bool = False


@dataclasses.dataclass(frozen=True)
class Plot:
    """A chart: a file name, a title with the unit, its curves, the kind of its y axis, and x."""

    name: str
    title: str
    curves: tuple[Curve, ...]
    scale: Literal["linear", "small", "from zero", "log"]
    x: str = "step"


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


Chart = Plot | Matrix


def plots(
    training: Sequence[Record], evaluations: Sequence[Record], rollouts: Sequence[Record] = ()
) -> list[Plot]:
    """The charts for which there are numbers: of any run, and of a policy's rollouts.

    Args:
        training: records of steps.
        evaluations: of evaluations.
        rollouts: of iterations of reinforcement learning.
    """
    loss = _curve(training, "loss", "training")
    validation = _curve(evaluations, "validation_loss", "validation", role="second", dots=True)
    rate = _curve(training, "learning_rate")
    speed = _curve(training[1:], "tokens_per_s")  # the first step of a run compiles
    norm = _curve(training, "grad_norm")
    found = [
        Plot("loss", "Loss (nats per token)", (*_with_mean(loss), validation), "linear"),
        Plot("learning_rate", "Learning rate", (_thin(rate),), "small"),
        Plot("throughput", "Throughput (tokens per second)", _with_mean(speed), "from zero"),
        Plot("grad_norm", "Gradient norm", _with_mean(norm), "log"),
    ]
    if rollouts:
        found = _of_rollouts(training, evaluations, rollouts) + found
    return [plot for plot in found if any(curve.x.size for curve in plot.curves)]


def _of_rollouts(
    training: Sequence[Record], evaluations: Sequence[Record], rollouts: Sequence[Record]
) -> list[Plot]:
    """What practitioners watch: what answers earn, how far the policy is gone, and how it moves."""
    held_out: dict[str, Any] = {"role": "second", "dots": True}
    rewards = (
        _curve(rollouts, "reward", "rollouts", faint=True),
        _curve(evaluations, "validation_reward", "held-out prompts", dots=True),
        _curve(evaluations, "validation_gold", "gold, held-out prompts", **held_out),
    )
    lengths = (
        _curve(rollouts, "answer_tokens", "rollouts"),
        _curve(evaluations, "validation_answer_tokens", "held-out prompts", **held_out),
    )
    parts = sorted({name for record in rollouts for name in record if name.startswith("reward/")})
    clipped = (
        _curve(training, "clipped_high", "above", faint=True),
        _curve(training, "clipped_low", "below", role="second", faint=True),
    )
    found = [
        Plot("reward", "Reward of an answer", rewards, "linear"),
        Plot(
            "kl",
            "From the reference (nats an answer)",
            (_curve(rollouts, "kl_per_response"),),
            "linear",
        ),
        Plot("answer_tokens", "Tokens of an answer", lengths, "from zero"),
        Plot(
            "repetition",
            "Repetition (share of answers)",
            (_curve(rollouts, "repetition"),),
            "from zero",
        ),
        Plot(
            "entropy", "Entropy (nats per token)", _with_mean(_curve(training, "entropy")), "linear"
        ),
        Plot("clipped", "Ratios clipped (share of tokens)", clipped, "from zero"),
    ]
    if explained := [record for record in map(_explained, training) if record]:
        both = _with_mean(_curve(explained, "explained"))
        found.append(Plot("explained", "Variance that values explain", both, "linear"))
    if len(parts) > 1:
        roles = ("first", "second")
        curves = tuple(
            _curve(rollouts, name, name.removeprefix("reward/"), role=roles[i % 2], faint=i > 1)
            for i, name in enumerate(parts)
        )
        found.insert(1, Plot("reward_parts", "Rewards by part", curves, "linear"))
    return found


def calibration(confidence: np.ndarray, right: np.ndarray) -> Plot:
    """How often a reward model is right beside how sure of it it is; where it should lie is faint.

    Args:
        confidence: [bins], NaN of a bin without pairs.
        right: [bins], likewise.
    """
    there = np.isfinite(confidence)
    ends = np.array([0.5, 1.0])
    curves = (
        Curve("as sure as right", ends, ends, role="second", faint=True),
        Curve("held-out pairs", confidence[there], right[there], dots=True),
    )
    return Plot("calibration", "Comparisons right (share)", curves, "linear", "confidence")


def _explained(record: Record) -> Record:
    """1 - Var(R - V) / Var(R) of a step's returns and values; nothing without a critic."""
    names = ("return", "return_square", "value_error", "value_error_square")
    if not all(isinstance(record.get(name), int | float) for name in names):
        return {}
    mean, square, error, error_square = (float(record[name]) for name in names)
    spread = square - mean**2
    if spread <= 0:
        return {}
    return {"step": record["step"], "explained": 1 - (error_square - error**2) / spread}


def write_png(plot: Chart, path: pathlib.Path) -> None:
    """Draws the chart into a PNG file."""
    _figure(plot, _PRINT).savefig(path, format="png", dpi=200, facecolor="white")


def svg(plot: Chart) -> str:
    """The chart as an <svg> element that takes its colours from the page's CSS variables."""
    import matplotlib

    text = io.StringIO()
    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": plot.name}):
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


def _curve(records: Sequence[Record], name: str, label: str = "", **options: Any) -> Curve:
    pairs = [(r["step"], r[name]) for r in records if isinstance(r.get(name), int | float)]
    steps, values = np.array(pairs, dtype=np.float64).reshape(-1, 2).T
    return Curve(label or name, steps, values, **options)


def _with_mean(curve: Curve) -> tuple[Curve, Curve]:
    """The curve, faint, under its mean over a fiftieth of the run (less at the ends)."""
    size = curve.y.size
    index = np.arange(size)
    low, high = np.maximum(index - size // 100, 0), np.minimum(index + size // 100 + 1, size)
    sums = np.concatenate([[0.0], np.cumsum(curve.y)])
    mean = (sums[high] - sums[low]) / (high - low)
    smooth = dataclasses.replace(curve, y=mean, label=f"{curve.label}, smoothed")
    return _thin(dataclasses.replace(curve, faint=True)), _thin(smooth)


def _thin(curve: Curve) -> Curve:
    """At most `_POINTS` points, each the mean of its neighbourhood."""
    if curve.x.size <= _POINTS:
        return curve
    x, y = (
        np.array([part.mean() for part in np.array_split(values, _POINTS)])
        for values in (curve.x, curve.y)
    )
    return dataclasses.replace(curve, x=x, y=y)


def _figure(plot: Chart, colours: Mapping[str, str]) -> "Figure":
    from matplotlib.figure import Figure  # slow to import; without pyplot there is no global state

    if isinstance(plot, Matrix):
        side = min(max(2.2 + 0.38 * len(plot.labels), 3.2), 9.0)
        figure = Figure(figsize=(side + 0.6, side), layout="constrained")
        _cells(figure.add_subplot(), plot, colours)
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


def _short(label: str) -> str:
    return label if len(label) <= 20 else f"{label[:19]}…"


def _style(axes: "Axes", plot: Plot, colours: Mapping[str, str]) -> None:
    from matplotlib.ticker import LogLocator, MaxNLocator, NullFormatter

    axes.set_title(plot.title, loc="left", color=colours["ink"], fontsize=10, weight="bold", pad=8)
    axes.set_xlabel(plot.x, color=colours["muted"], fontsize=9)
    axes.tick_params(which="both", colors=colours["muted"], labelsize=8.5, length=0)
    if plot.x == "step":
        axes.xaxis.set_major_locator(MaxNLocator(6, integer=True))
        axes.xaxis.set_major_formatter(lambda step, _: f"{step:,.0f}")
    axes.grid(axis="y", color=colours["grid"], linewidth=0.8)
    axes.set_axisbelow(True)
    axes.margins(x=0.02)
    axes.spines[["top", "right", "left"]].set_visible(False)
    axes.spines["bottom"].set_color(colours["grid"])
    if plot.scale == "log" and all((curve.y > 0).all() for curve in plot.curves):
        axes.set_yscale("log")
        axes.yaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
        axes.yaxis.set_major_formatter(lambda value, _: f"{value:g}")
        axes.yaxis.set_minor_formatter(NullFormatter())
    elif plot.scale == "from zero":
        axes.set_ylim(bottom=0)
        axes.yaxis.set_major_formatter(lambda value, _: f"{value:,.0f}")
    elif plot.scale == "small":
        axes.yaxis.set_major_formatter(lambda value, _: f"{value:.1e}" if value else "0")
    if len({curve.role for curve in plot.curves if curve.x.size}) > 1:
        axes.legend(frameon=False, fontsize=8.5, labelcolor=colours["ink"])
