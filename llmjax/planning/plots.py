"""IsoFLOP curves: loss by size at equal cost (Hoffmann et al. 2022, figure 3)."""

from collections.abc import Sequence

import numpy as np

from llmjax.pages.charts import Curve, Plot
from llmjax.planning.fitting import Runs
from llmjax.planning.scaling import FLOPS_PER_PARAM, LossLaw

_SPAN = 30.0  # curves extend by this factor to both sides of their minimum


def isoflops(law: LossLaw, budgets: Sequence[float], runs: Runs | None = None) -> Plot:
    """A curve per budget (stronger for larger budgets), their minima, and the measured runs.

    Args:
        law: the loss law.
        budgets: budgets in FLOPs.
        runs: those that the law was fitted to.
    """
    curves = []
    best = [law.optimal(budget) for budget in sorted(budgets)]
    strengths = np.linspace(0.3, 1.0, len(best))
    for point, strength in zip(best, strengths, strict=True):
        params = point.params * np.geomspace(1 / _SPAN, _SPAN, 121)
        tokens = point.flops / (FLOPS_PER_PARAM * params)
        losses = np.array([law.loss(n, d) for n, d in zip(params, tokens, strict=True)])
        label = f"{point.flops:.2g} FLOPs"
        curves.append(Curve(label, params, losses, strength=float(strength)))
    params = np.array([point.params for point in best])
    losses = np.array([law.loss(point.params, point.tokens) for point in best])
    curves.append(Curve("best size", params, losses, mark="points"))
    if runs is not None:
        curves.append(Curve("runs", runs.params, runs.loss, "second", "points"))
    title = "Loss at equal cost (nats per token)"
    return Plot("isoflops", title, tuple(curves), x="parameters", log_x=True)
