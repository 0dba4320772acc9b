"""IsoFLOP curves: the loss by the size of the model at equal cost (Hoffmann et al. 2022, fig. 3)."""

import pathlib
from collections.abc import Sequence

import numpy as np

from llmjax.planning.fitting import Runs
from llmjax.planning.scaling import FLOPS_PER_PARAM, LossLaw

_INK, _MUTED, _GRID, _DOTS = "#1c2430", "#667085", "#e4e7ec", "#d9480f"
_SPAN = 30.0  # how far curves go to both sides of their minimum, as a factor


def plot_isoflops(
    path: pathlib.Path, law: LossLaw, budgets: Sequence[float], runs: Runs | None = None
) -> None:
    """Draws a curve for each budget, with its minimum, and measured runs as dots.

    Args:
        path: an .svg or .png file.
        law: of the loss.
        budgets: in FLOPs.
        runs: those that the law was fitted to.

    Raises:
        ValueError: a file of another kind.
    """
    if path.suffix not in (".svg", ".png"):
        raise ValueError(f"{path}: a plot is written as .svg or .png")
    import matplotlib
    from matplotlib.figure import Figure  # slow to import

    figure = Figure(figsize=(6.4, 4.2), layout="constrained")
    axes = figure.add_subplot()
    colours = matplotlib.colormaps["viridis"](np.linspace(0.85, 0.1, len(budgets)))
    for budget, colour in zip(sorted(budgets), colours, strict=True):
        best = law.optimal(budget)
        params = best.params * np.geomspace(1 / _SPAN, _SPAN, 121)
        losses = [law.loss(n, budget / (FLOPS_PER_PARAM * n)) for n in params]
        axes.plot(params, losses, color=colour, linewidth=1.6, label=f"{budget:.1e}")
        axes.plot([best.params], [law.loss(best.params, best.tokens)], "o", color=colour, ms=5)
    if runs is not None:
        axes.plot(runs.params, runs.loss, ".", color=_DOTS, ms=4, label="runs")
    _style(axes)
    # The same file for the same numbers.
    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": "isoflops"}):
        metadata = {"Date": None} if path.suffix == ".svg" else None
        figure.savefig(path, dpi=200, facecolor="white", metadata=metadata)


def _style(axes) -> None:
    axes.set_xscale("log")
    axes.set_title(
        "Loss at equal training FLOPs", loc="left", color=_INK, fontsize=11, weight="bold", pad=8
    )
    axes.set_xlabel("parameters", color=_MUTED, fontsize=9)
    axes.set_ylabel("loss (nats per token)", color=_MUTED, fontsize=9)
    axes.tick_params(which="both", colors=_MUTED, labelsize=8.5, length=0)
    axes.grid(color=_GRID, linewidth=0.8)
    axes.set_axisbelow(True)
    axes.spines[["top", "right", "left"]].set_visible(False)
    axes.spines["bottom"].set_color(_GRID)
    axes.legend(title="FLOPs", frameon=False, fontsize=8.5, labelcolor=_INK)
