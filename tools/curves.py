"""Curves of figures that several seeds repeat."""

from collections.abc import Sequence

import numpy as np

from llmjax.evaluation import summary
from llmjax.pages import charts


def mean(
    label: str, x: Sequence[float], runs: Sequence[Sequence[float]], role: charts.Role
) -> charts.Curve:
    """The mean over runs within its 95 % interval.

    Args:
        label: its legend entry.
        x: [N].
        runs: values [N] of each run, two or more.
        role: its colour.
    """
    found = [summary.summarize(values) for values in zip(*runs, strict=True)]
    middle, low, high = (
        np.array([getattr(one, name) for one in found]) for name in ("mean", "low", "high")
    )
    return charts.Curve(
        label, np.array(x, float), middle, role, "line and points", band=(low, high)
    )
