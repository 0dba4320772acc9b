"""Reports scores: curves, the ratio of compute at equal accuracy, a table, and charts."""

import itertools
import json
import pathlib
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from llmjax.pages import charts, drawing

MEASURES = {
    "probe": "linear probe",
    "probe_balanced": "linear probe, balanced",
    "fine_tuning": "fine-tuning",
    "fine_tuning_balanced": "fine-tuning, balanced",
}
MARGIN = 1.05  # whole steps: checkpoints of both differ in compute by up to this factor
PLOTTED = ("probe", "fine_tuning")
_ROLES: dict[str, charts.Role] = {"mlm": "first", "rtd": "second"}

Record = dict[str, Any]


class Curves(NamedTuple):
    """FLOPs of an objective's checkpoints [P], and the accuracies of its seeds there [R, P]."""

    flops: np.ndarray
    accuracy: np.ndarray


class Ratio(NamedTuple):
    """Compute of mlm over that of rtd at an accuracy that both reach.

    Attributes:
        accuracy: the lower of the two mean accuracies at the end.
        mean: ratio of the mean curves.
        low: lowest ratio over pairs of one seed of each objective.
        high: highest ratio over these pairs.
        pairs: number of pairs.
    """

    accuracy: float
    mean: float
    low: float
    high: float
    pairs: int


def curves(records: Sequence[Record], objective: str, measure: str) -> Curves:
    """The curves of an objective, without checkpoint 0."""
    seeds = sorted({record["seed"] for record in records})
    rows = [
        sorted(
            (record["flops"], record[measure])
            for record in records
            if (record["objective"], record["seed"]) == (objective, seed) and record["flops"] > 0
        )
        for seed in seeds
    ]
    table = np.array(rows, np.float64)  # [R, P, 2]
    return Curves(table[0, :, 0], table[:, :, 1])


def compute_to_reach(flops: np.ndarray, accuracy: np.ndarray, target: float) -> float:
    """The least compute at which a curve [P] reaches the target.

    Accuracy is interpolated linearly in the logarithm of compute. The result is an upper bound if
    the first checkpoint reaches the target, and infinite if none does.
    """
    reached = np.flatnonzero(accuracy >= target)
    if not len(reached):
        return float("inf")
    after = int(reached[0])
    if after == 0:
        return float(flops[0])
    before = after - 1
    share = (target - accuracy[before]) / (accuracy[after] - accuracy[before])
    low, high = np.log(flops[before]), np.log(flops[after])
    return float(np.exp(low + share * (high - low)))


def ratio(mlm: Curves, rtd: Curves) -> Ratio:
    """Compute of mlm over compute of rtd at equal accuracy: above 1 where rtd needs less."""

    def of(ours: np.ndarray, theirs: np.ndarray) -> tuple[float, float]:
        target = min(ours[-1], theirs[-1])
        needed = compute_to_reach(mlm.flops, ours, target)
        return target, needed / compute_to_reach(rtd.flops, theirs, target)

    target, mean = of(mlm.accuracy.mean(axis=0), rtd.accuracy.mean(axis=0))
    pairs = [of(*pair)[1] for pair in itertools.product(mlm.accuracy, rtd.accuracy)]
    return Ratio(float(target), mean, min(pairs), max(pairs), len(pairs))


def verdict(name: str, found: Ratio) -> str:
    """Which objective wins by this measure, in a sentence.

    Neither, if pairs of seeds disagree or differ by less than `MARGIN`, or if there is one seed.
    """
    spread = f"{found.low:.2f} to {found.high:.2f} over {found.pairs} pairs of seeds"
    at = f"at an accuracy of {found.accuracy:.1%} MLM needs {found.mean:.2f} times RTD's compute"
    who = "no clear winner"
    if found.pairs > 1 and found.low > MARGIN:
        who = "RTD wins"
    if found.pairs > 1 and found.high < 1 / MARGIN:
        who = "MLM wins"
    return f"{name}: {who}: {at} ({spread})."


def markdown(results: dict[str, Any]) -> str:
    """The table of all checkpoints, the baselines, and the verdicts."""
    records = results["records"]
    lines = [
        "| compute (FLOPs) | "
        + " | ".join(f"{o.upper()}, {MEASURES[m]}" for m, o in _columns())
        + " |",
        "|---:|" + "---:|" * len(list(_columns())),
    ]
    for index in range(len(_flops(records, "mlm"))):
        cells = [_cell(records, objective, measure, index) for measure, objective in _columns()]
        spent = [_flops(records, objective)[index] for objective in ("mlm", "rtd")]
        lines.append(f"| {np.mean(spent):.2e} | " + " | ".join(cells) + " |")
    of = f"{results['held_out']:,} held-out packages in %, mean ± standard deviation over seeds"
    lines += ["", f"Accuracy on {of}; the first row is untrained.", ""]
    for name, score in results["baselines"].items():
        lines.append(f"- {name}: {score['accuracy']:.1%}, balanced {score['balanced']:.1%}")
    for objective, found in results["tried"].items():
        each = ", ".join(f"{float(rate):g}: {accuracy:.1%}" for rate, accuracy in found.items())
        last = [r["seconds"] for r in records if r["objective"] == objective and r["flops"]]
        lines.append(
            f"- {objective.upper()}: {results['steps'][objective]:,} steps in {max(last):.0f} s; "
            f"probe on the validation split by learning rate, {each}"
        )
    lines.append("")
    for measure, name in MEASURES.items():
        pair = [curves(records, objective, measure) for objective in ("mlm", "rtd")]
        lines.append(f"- {verdict(name, ratio(*pair))}")
    return "\n".join(lines) + "\n"


def write(results: dict[str, Any], directory: pathlib.Path) -> None:
    """results.json, results.md, and each of `PLOTTED` as .svg and .png."""
    directory.mkdir(parents=True, exist_ok=True)
    (directory / "results.json").write_text(json.dumps(results, indent=1) + "\n")
    (directory / "results.md").write_text(markdown(results))
    known = results["baselines"]["bag of tokens"]["accuracy"]
    for measure in PLOTTED:
        for suffix in (".svg", ".png"):
            drawn = chart(results["records"], measure, known)
            drawing.write(drawn, (directory / measure).with_suffix(suffix))


def chart(records: Sequence[Record], measure: str, known: float) -> charts.Plot:
    """A chart of accuracy by compute: means and ranges over seeds, and the bag of tokens."""
    shown = []
    for objective, role in _ROLES.items():
        flops, accuracy = curves(records, objective, measure)
        band = (accuracy.min(axis=0), accuracy.max(axis=0))
        mean = accuracy.mean(axis=0)
        label = objective.upper()
        shown.append(charts.Curve(label, flops, mean, role, "line and points", band=band))
    ends = np.array([min(curve.x[0] for curve in shown), max(curve.x[-1] for curve in shown)])
    shown.append(charts.Curve("bag of tokens", ends, np.full(2, known), "muted", "dashes"))
    title = f"{MEASURES[measure].capitalize()} (accuracy; range of seeds)"
    x = "compute of pretraining (FLOPs)"
    return charts.Plot(measure, title, tuple(shown), "percent", x=x, log_x=True)


def _columns() -> itertools.product:
    return itertools.product(MEASURES, ("mlm", "rtd"))


def _flops(records: Sequence[Record], objective: str) -> list[float]:
    return sorted({record["flops"] for record in records if record["objective"] == objective})


def _cell(records: Sequence[Record], objective: str, measure: str, index: int) -> str:
    flops = _flops(records, objective)[index]
    values = [
        100 * record[measure]
        for record in records
        if (record["objective"], record["flops"]) == (objective, flops)
    ]
    return f"{np.mean(values):.1f} ± {np.std(values, ddof=min(1, len(values) - 1)):.1f}"
