"""Fits a law of the loss to runs, as approach 3 of Hoffmann et al. 2022 does (section 3.3)."""

import csv
import dataclasses
import itertools
import math
import pathlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from llmjax.planning.scaling import LossLaw

DELTA = 1e-3  # where Huber's loss turns from squares to magnitudes, of log L
FEWEST = 6  # runs; the law has 5 numbers
# Starts, as there; of log A, log B, log E, α and β.
GRID = (
    range(0, 30, 5),
    range(0, 30, 5),
    (-1.0, -0.5, 0.0, 0.5, 1.0),
    (0.0, 0.5, 1.0, 1.5, 2.0),
    (0.0, 0.5, 1.0, 1.5, 2.0),
)
STARTS = 16  # of the grid, those that fit best, are followed to their minimum
BOUNDS = np.array([(-20.0, 60.0), (-20.0, 60.0), (-20.0, 20.0), (0.0, 5.0), (0.0, 5.0)]).T
ITERATIONS, TOLERANCE = 1000, 1e-9
STUCK = 1e8  # damping at which no step lowers the objective any more
TINY = np.finfo(np.float64).tiny ** 0.5  # keeps what no run depends on solvable
COLUMNS = ("params", "tokens", "loss")


@dataclasses.dataclass(frozen=True)
class Runs:
    """What was measured, a number a run in each array.

    Attributes:
        params: N.
        tokens: D.
        loss: nats a token, on held-out text, at the end of a schedule as long as the run.
    """

    params: np.ndarray
    tokens: np.ndarray
    loss: np.ndarray

    def __post_init__(self) -> None:
        for name in COLUMNS:
            values = np.asarray(getattr(self, name), np.float64)
            if not (np.isfinite(values).all() and (values > 0).all()):
                raise ValueError(f"{name}: every run needs a finite number above 0")
            object.__setattr__(self, name, values)

    def __len__(self) -> int:
        return self.params.size

    def __getitem__(self, index: Any) -> "Runs":
        """Those at some places."""
        return Runs(self.params[index], self.tokens[index], self.loss[index])


@dataclasses.dataclass(frozen=True)
class Fit:
    """A fitted law, and how sure it is.

    Attributes:
        law: of all runs.
        error: root of the mean square of log L less the law's, a relative error.
        bootstrap: laws of as many runs, drawn with replacement.
    """

    law: LossLaw
    error: float
    bootstrap: tuple[LossLaw, ...]

    def interval(
        self, quantity: Callable[[LossLaw], float], share: float = 0.8
    ) -> tuple[float, float]:
        """Between which the middle `share` of the bootstrap's values of a quantity lie."""
        values = [quantity(law) for law in self.bootstrap]
        low, high = np.quantile(values, [(1 - share) / 2, (1 + share) / 2])
        return float(low), float(high)


def fit(runs: Runs, *, resamples: int = 500, seed: int = 0) -> Fit:
    """The law with the least Huber loss of log L over the runs, from the best of a grid of starts.

    Args:
        runs: at least six, with at least three sizes and three numbers of tokens.
        resamples: of the bootstrap, each from the minimum of all runs.
        seed: of its draws.

    Raises:
        ValueError: runs that do not determine a law.
    """
    _require_varied(runs)
    count, random = len(runs), np.random.default_rng(seed)
    once = np.ones((1, count))
    grid = np.array(list(itertools.product(*GRID)), np.float64)
    order = np.argsort(_huber(_residuals(grid, runs)[0], once))
    found, values = _minimize(grid[order[:STARTS]], runs, once)
    best = found[np.argmin(values)][None]
    counts = random.multinomial(count, np.full(count, 1 / count), size=resamples)
    drawn, _ = _minimize(np.repeat(best, resamples, axis=0), runs, counts.astype(np.float64))
    error = float(np.sqrt(np.mean(_residuals(best, runs)[0] ** 2)))
    return Fit(_law(best[0]), error, tuple(map(_law, drawn)))


def _require_varied(runs: Runs) -> None:
    if len(runs) < FEWEST:
        raise ValueError(f"{len(runs)} runs do not determine a law of 5 numbers: give {FEWEST}")
    for name in ("params", "tokens"):
        found = np.unique(getattr(runs, name)).size
        if found < 3:
            raise ValueError(
                f"{name}: all runs have {found} different value(s), which do not determine how the "
                "loss falls with it: give runs with three or more"
            )


def _law(theta: np.ndarray) -> LossLaw:
    A, B, E = np.exp(theta[:3])
    return LossLaw(float(E), float(A), float(B), *(max(float(x), TINY) for x in theta[3:]))


def _residuals(theta: np.ndarray, runs: Runs) -> tuple[np.ndarray, np.ndarray]:
    """log L less that of the runs, [T, R], by points theta [T, 5]; its slope [T, R, 5]."""
    log_a, log_b, log_e, alpha, beta = theta.T[..., None]
    log_n, log_d = np.log(runs.params), np.log(runs.tokens)
    terms = np.stack(np.broadcast_arrays(log_a - alpha * log_n, log_b - beta * log_d, log_e))
    highest = terms.max(axis=0)
    powers = np.exp(terms - highest)
    total = powers.sum(axis=0)
    shares = powers / total
    slope = np.stack([*shares, -shares[0] * log_n, -shares[1] * log_d], axis=-1)
    return highest + np.log(total) - np.log(runs.loss), slope


def _huber(residuals: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """Summed over the runs, each as often as it counts: [T, R] to [T]."""
    size = np.abs(residuals)
    huber = np.where(size <= DELTA, residuals**2 / 2, DELTA * (size - DELTA / 2))
    return np.sum(counts * huber, axis=-1)


def _minimize(theta: np.ndarray, runs: Runs, counts: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Levenberg-Marquardt on squares weighted anew in every step, of T problems side by side.

    The squares lie above Huber's loss and touch it where they were weighted, so that a step that
    lowers them lowers it. L-BFGS-B, which the paper used, stops early on so flat a valley
    (Besiroglu et al. 2024, section 4).

    Args:
        theta: starts [T, 5].
        runs: R of them.
        counts: how often each run counts, [T or 1, R].

    Returns:
        Minima [T, 5], and what the objective is there [T].
    """
    damping = np.full(len(theta), 1e-3)
    residuals, slope = _residuals(theta, runs)
    value = _huber(residuals, counts)
    for _ in range(ITERATIONS):
        weights = counts * np.minimum(1.0, DELTA / np.maximum(np.abs(residuals), DELTA))
        weighted = np.swapaxes(weights[..., None] * slope, 1, 2)
        square = weighted @ slope
        diagonal = np.einsum("tii->ti", square) + TINY
        square = square + (damping[:, None] * diagonal)[..., None] * np.eye(5)
        step = np.linalg.solve(square, weighted @ residuals[..., None])[..., 0]
        moved = np.clip(theta - step, *BOUNDS)
        residuals_there, slope_there = _residuals(moved, runs)
        there = _huber(residuals_there, counts)
        better = there < value
        done = np.where(better, value - there <= TOLERANCE * value, damping > STUCK)
        theta = np.where(better[:, None], moved, theta)
        residuals = np.where(better[:, None], residuals_there, residuals)
        slope = np.where(better[:, None, None], slope_there, slope)
        value = np.where(better, there, value)
        damping = np.where(better, damping / 5, damping * 4)
        if done.all():
            break
    return theta, value


def read_runs(path: pathlib.Path) -> Runs:
    """Runs from a .csv file with a header, or JSON lines: params, tokens and loss of each.

    Raises:
        ValueError: a file of another kind, or a line that lacks a number; its place is named.
    """
    if path.suffix == ".csv":
        with path.open(encoding="utf-8", newline="") as file:
            # The header is line 1.
            return runs_of(enumerate(csv.DictReader(file), start=2), str(path))
    if path.suffix in (".jsonl", ".json"):
        from llmjax.train.metrics import read_jsonl

        return runs_of(enumerate(read_jsonl(path), start=1), str(path))
    raise ValueError(f"{path}: runs are read from .csv or .jsonl")


def runs_of(records: Iterable[tuple[int, Mapping[str, Any]]], where: str) -> Runs:
    """Runs from numbered records with params, tokens and loss.

    Raises:
        ValueError: one that lacks a number.
    """
    columns: dict[str, list[float]] = {name: [] for name in COLUMNS}
    for number, record in records:
        for name in COLUMNS:
            columns[name].append(_number(record, name, f"{where}:{number}"))
    return Runs(*(np.array(columns[name]) for name in COLUMNS))


def _number(record: Mapping[str, Any], name: str, where: str) -> float:
    try:
        value = float(record[name])
    except KeyError:
        raise ValueError(f"{where}: has no {name}; a run has {', '.join(COLUMNS)}") from None
    except (TypeError, ValueError):
        raise ValueError(f"{where}: {name}={record[name]!r} is not a number") from None
    if not (value > 0 and math.isfinite(value)):
        raise ValueError(f"{where}: {name}={value}: must be above 0, and finite")
    return value


def merged(parts: Sequence[Runs]) -> Runs:
    """All runs of several places."""
    return Runs(*(np.concatenate([getattr(part, name) for part in parts]) for name in COLUMNS))
