"""Fits a loss law to runs, by approach 3 of Hoffmann et al. 2022 (section 3.3)."""

import csv
import dataclasses
import itertools
import math
import pathlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from llmjax.planning.scaling import LossLaw

DELTA = 1e-3  # where the Huber loss turns from quadratic to linear, in log L
FEWEST = 6  # runs; the law has 5 parameters
# The paper's grid of starts for log A, log B, log E, α and β.
GRID = (
    range(0, 30, 5),
    range(0, 30, 5),
    (-1.0, -0.5, 0.0, 0.5, 1.0),
    (0.0, 0.5, 1.0, 1.5, 2.0),
    (0.0, 0.5, 1.0, 1.5, 2.0),
)
STARTS = 16  # the best points of the grid are followed to their minimum
BOUNDS = np.array([(-20.0, 60.0), (-20.0, 60.0), (-20.0, 20.0), (0.0, 5.0), (0.0, 5.0)]).T
ITERATIONS, TOLERANCE = 1000, 1e-9
STUCK = 1e8  # damping above which no step lowers the objective
TINY = np.finfo(np.float64).tiny ** 0.5  # keeps the solve regular in directions no run constrains
COLUMNS = ("params", "tokens", "loss")


@dataclasses.dataclass(frozen=True)
class Runs:
    """Measured runs, one number per run in each array.

    Attributes:
        params: N, model parameters.
        tokens: D, training tokens.
        loss: nats per token on held-out text, at the end of a schedule as long as the run.
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


@dataclasses.dataclass(frozen=True)
class Fit:
    """A fitted law and its uncertainty.

    Attributes:
        law: fitted to all runs.
        error: root mean square residual of log L, a relative error.
        bootstrap: laws fitted to resamples of the runs, drawn with replacement.
    """

    law: LossLaw
    error: float
    bootstrap: tuple[LossLaw, ...]

    def interval(
        self, quantity: Callable[[LossLaw], float], share: float = 0.8
    ) -> tuple[float, float]:
        """The interval that holds the middle `share` of the bootstrap values of a quantity."""
        values = [quantity(law) for law in self.bootstrap]
        low, high = np.quantile(values, [(1 - share) / 2, (1 + share) / 2])
        return float(low), float(high)


def fit(runs: Runs, *, resamples: int = 500, seed: int = 0) -> Fit:
    """Minimises the Huber loss of log L over the runs, starting from the best points of a grid.

    Args:
        runs: at least six, with at least three sizes and three token counts.
        resamples: number of bootstrap resamples, each fitted from the minimum of all runs.
        seed: random seed of the resampling.

    Raises:
        ValueError: the runs do not determine a law.
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
                "loss depends on it: give runs with at least three"
            )


def _law(theta: np.ndarray) -> LossLaw:
    A, B, E = np.exp(theta[:3])
    return LossLaw(float(E), float(A), float(B), *(max(float(x), TINY) for x in theta[3:]))


def _residuals(theta: np.ndarray, runs: Runs) -> tuple[np.ndarray, np.ndarray]:
    """Residuals of log L [T, R] at the points theta [T, 5], and their Jacobian [T, R, 5]."""
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
    """Huber loss summed over the runs, weighted by their counts: [T, R] to [T]."""
    size = np.abs(residuals)
    huber = np.where(size <= DELTA, residuals**2 / 2, DELTA * (size - DELTA / 2))
    return np.sum(counts * huber, axis=-1)


def _minimize(theta: np.ndarray, runs: Runs, counts: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Iteratively reweighted Levenberg-Marquardt, on T problems at once.

    Each step minimises a weighted sum of squares that lies above the Huber loss and touches it at
    the current point, so a step that lowers the squares lowers the loss. L-BFGS-B, which the paper
    used, stops early in so flat a valley (Besiroglu et al. 2024, section 4).

    Args:
        theta: starts [T, 5].
        runs: R of them.
        counts: weight of each run, [T or 1, R].

    Returns:
        Minima [T, 5] and the objective there [T].
    """
    counts = np.broadcast_to(counts, (len(theta), len(runs)))
    found, values = theta.copy(), np.empty(len(theta))
    going, damping = np.arange(len(theta)), np.full(len(theta), 1e-3)
    residuals, slope = _residuals(theta, runs)
    values[:] = _huber(residuals, counts)
    for _ in range(ITERATIONS):
        step = _step(residuals, slope, counts[going], damping)
        moved = np.clip(found[going] - step, *BOUNDS)
        residuals_there, slope_there = _residuals(moved, runs)
        there = _huber(residuals_there, counts[going])
        better = there < values[going]
        ended = np.where(
            better, values[going] - there <= TOLERANCE * values[going], damping > STUCK
        )
        found[going[better]], values[going[better]] = moved[better], there[better]
        residuals[better], slope[better] = residuals_there[better], slope_there[better]
        damping = np.where(better, damping / 5, damping * 4)[~ended]
        going, residuals, slope = going[~ended], residuals[~ended], slope[~ended]
        if not going.size:
            break
    return found, values


def _step(residuals, slope, counts, damping) -> np.ndarray:
    """The damped Gauss-Newton step of the weighted squares, [T, 5]."""
    weights = counts * np.minimum(1.0, DELTA / np.maximum(np.abs(residuals), DELTA))
    weighted = np.swapaxes(weights[..., None] * slope, 1, 2)
    square = weighted @ slope
    diagonal = np.einsum("tii->ti", square) + TINY
    square = square + (damping[:, None] * diagonal)[..., None] * np.eye(5)
    return np.linalg.solve(square, weighted @ residuals[..., None])[..., 0]


def read_runs(path: pathlib.Path) -> Runs:
    """Reads params, tokens and loss of each run from a .csv file with a header or from JSON lines.

    Raises:
        ValueError: an unknown file type, or a line without a valid number (the line is named).
    """
    if path.suffix == ".csv":
        with path.open(encoding="utf-8", newline="") as file:
            reader = csv.DictReader(file)
            return runs_of(((reader.line_num, row) for row in reader), str(path))
    if path.suffix in (".jsonl", ".json"):
        from llmjax.train.metrics import numbered_jsonl

        return runs_of(numbered_jsonl(path), str(path))
    raise ValueError(f"{path}: runs are read from .csv or .jsonl")


def runs_of(records: Iterable[tuple[int, Mapping[str, Any]]], where: str) -> Runs:
    """Builds runs from numbered records with params, tokens and loss.

    Raises:
        ValueError: a record lacks a number.
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
    """Concatenates runs from several sources."""
    return Runs(*(np.concatenate([getattr(part, name) for part in parts]) for name in COLUMNS))
