"""Fits find the law that made the runs, and their intervals hold it as often as they say."""

import json
import pathlib

import numpy as np
import pytest
from scipy import optimize

from llmjax.planning import fitting, scaling

LAW = scaling.HOFFMANN


def ladder(noise: float, seed: int = 0, count: int = 60) -> fitting.Runs:
    """Runs as Hoffmann et al. made: 44 million to 16 billion parameters, 6e18 to 3e21 FLOPs."""
    random = np.random.default_rng(seed)
    params = np.exp(random.uniform(np.log(4.4e7), np.log(1.6e10), count))
    tokens = np.exp(random.uniform(np.log(6e18), np.log(3e21), count)) / (6 * params)
    loss = [LAW.loss(n, d) for n, d in zip(params, tokens, strict=True)]
    return fitting.Runs(params, tokens, loss * np.exp(noise * random.standard_normal(count)))


def test_runs_without_noise_give_their_law() -> None:
    fit = fitting.fit(ladder(0), resamples=2)
    for name in ("E", "A", "B", "alpha", "beta"):
        assert getattr(fit.law, name) == pytest.approx(getattr(LAW, name), rel=1e-5)
    assert fit.error < 1e-9


def test_the_minimum_is_one() -> None:
    """Another method, started there, finds nothing lower of the objective that the paper states."""
    runs = ladder(0.01)
    law = fitting.fit(runs, resamples=2).law

    def objective(theta: np.ndarray) -> float:
        A, B, E = np.exp(theta[:3])
        predicted = np.log(E + A / runs.params ** theta[3] + B / runs.tokens ** theta[4])
        size = np.abs(predicted - np.log(runs.loss))
        return float(np.where(size < 1e-3, size**2 / 2, 1e-3 * (size - 5e-4)).sum())

    start = np.array([np.log(law.A), np.log(law.B), np.log(law.E), law.alpha, law.beta])
    options = {"maxiter": 4000, "maxfev": 4000, "xatol": 1e-9, "fatol": 1e-15}
    better = optimize.minimize(objective, start, method="Nelder-Mead", options=options)
    assert better.fun > objective(start) * (1 - 1e-6)


def test_a_run_that_went_wrong_counts_little() -> None:
    runs = ladder(0.001)
    loss = runs.loss.copy()
    loss[7] *= 2
    broken = fitting.Runs(runs.params, runs.tokens, loss)
    budget = 1e22
    sound = fitting.fit(runs, resamples=2).law.optimal(budget)
    assert fitting.fit(broken, resamples=2).law.optimal(budget).params == pytest.approx(
        sound.params, rel=0.1
    )


def test_intervals_hold_the_truth_as_often_as_they_say() -> None:
    """80 % of them do; of 20, at least 11 and not all (binomial, 1 in 70)."""
    held = 0
    for seed in range(20):
        fit = fitting.fit(ladder(0.01, seed), resamples=40)
        low, high = fit.interval(lambda law: law.frontier().exponent)
        held += low <= LAW.frontier().exponent <= high
    assert 11 <= held < 20


def test_fits_are_repeated_by_their_seed() -> None:
    runs = ladder(0.01)
    assert fitting.fit(runs, resamples=5) == fitting.fit(runs, resamples=5)
    assert fitting.fit(runs, resamples=5) != fitting.fit(runs, resamples=5, seed=1)


def test_runs_that_determine_no_law() -> None:
    with pytest.raises(ValueError, match="5 runs do not determine a law"):
        fitting.fit(ladder(0, count=5))
    runs = ladder(0)
    with pytest.raises(ValueError, match=r"params: all runs have 1 different value"):
        fitting.fit(fitting.Runs(np.full(60, 1e8), runs.tokens, runs.loss))
    with pytest.raises(ValueError, match="loss: every run needs a finite number above 0"):
        fitting.Runs(runs.params, runs.tokens, np.full(60, np.nan))


ROWS = [{"params": 1e8, "tokens": 2e9, "loss": 3.1}, {"params": 2e8, "tokens": 4e9, "loss": 2.9}]


@pytest.mark.parametrize("kind", ["csv", "jsonl"])
def test_files_of_runs(tmp_path: pathlib.Path, kind: str) -> None:
    path = tmp_path / f"runs.{kind}"
    if kind == "csv":
        path.write_text("loss,name,params,tokens\n3.1,a,1e8,2e9\n2.9,b,2e8,4e9\n")
    else:
        path.write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    runs = fitting.read_runs(path)
    assert runs.params.tolist() == [1e8, 2e8]
    assert runs.tokens.tolist() == [2e9, 4e9]
    assert runs.loss.tolist() == [3.1, 2.9]


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("a.csv", "params,tokens\n1,2\n", r"a.csv:2: has no loss; a run has params, tokens, loss"),
        ("a.csv", "params,tokens,loss\n1,2,3\n1,x,3\n", r"a.csv:3: tokens='x' is not a number"),
        ("a.csv", "params,tokens,loss\n\n1,2,3\n\n1,x,3\n", r"a.csv:5: tokens='x' is not a number"),
        ("a.jsonl", '\n \n{"params": 1, "tokens": 2}\n', "a.jsonl:3: has no loss"),
        ("a.jsonl", '{"params": 1, "tokens": 2, "loss": -1}\n', "a.jsonl:1: loss=-1.0: must be ab"),
        ("a.jsonl", '{"params": 1, "tokens": 2, "loss": null}\n', "a.jsonl:1: loss=None is not a"),
        ("a.txt", "", "runs are read from .csv or .jsonl"),
    ],
)
def test_a_wrong_line_is_named(tmp_path: pathlib.Path, name: str, text: str, message: str) -> None:
    path = tmp_path / name
    path.write_text(text)
    with pytest.raises(ValueError, match=message):
        fitting.read_runs(path)
