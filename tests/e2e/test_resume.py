"""Law 7: a run that is killed and started again is the run that was never interrupted."""

import json
import pathlib
import shlex
import signal
import subprocess

import jax
import numpy as np
import pytest

from experiments import runs
from tests.e2e.processes import records, signal_after, start


def flags(run_dir: pathlib.Path) -> list[str]:
    return [
        "--recipe=tiny",
        "--steps=80",
        "--checkpoint_every=10",
        "--evaluate_every=40",
        f"--run_dir={run_dir}",
    ]


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """A run in one piece, and one in three: after kill −9, and by the line that SIGTERM is told."""
    root = tmp_path_factory.mktemp("runs")
    whole, cut = root / "whole", root / "cut"
    assert start(flags(whole)).wait() == 0
    assert signal_after(cut, 25, start(flags(cut))) == -signal.SIGKILL
    process = start(flags(cut), stderr=subprocess.PIPE, text=True)
    assert signal_after(cut, 50, process, signal.SIGTERM) == 0
    python, module, name, *rest = shlex.split(process.stderr.read().splitlines()[-1])
    assert (python, module, name) == ("python", "-m", "experiments.pretrain")
    assert start(rest).wait() == 0
    return whole, cut


def test_metrics_are_the_same_but_for_timings(folders):
    whole, cut = map(records, folders)
    assert [r["step"] for r in whole if "loss" in r] == list(range(1, 81))
    assert whole == cut


def test_parameters_are_the_same_bytes(folders):
    whole, cut = (runs.load(folder, best=False) for folder in folders)
    assert whole.step == cut.step == 80
    for a, b in zip(jax.tree.leaves(whole.params), jax.tree.leaves(cut.params), strict=True):
        assert np.asarray(a).tobytes() == np.asarray(b).tobytes()


def test_the_loss_falls_and_the_report_is_there(folders):
    losses = [record["loss"] for record in records(folders[1]) if "loss" in record]
    assert np.mean(losses[-10:]) < 0.6 * losses[0]
    assert (folders[1] / "report.html").stat().st_size > 10_000


def test_what_the_run_cost_is_told(folders):
    lines = [json.loads(line) for line in (folders[0] / "metrics.jsonl").read_text().splitlines()]
    steps = [line for line in lines if "loss" in line]
    assert steps[0]["compile_seconds"] > 0
    assert {line["compile_seconds"] for line in steps[:30]} == {steps[0]["compile_seconds"]}
    assert all(line["tokens_per_s_per_chip"] == line["tokens_per_s"] for line in steps)
    assert all(0 <= line["data_seconds"] <= line["seconds"] for line in steps)
    # What is productive is in steps, and the wall has the start of the process too.
    productive = sum(line["seconds"] - line["data_seconds"] for line in steps[1:])
    assert 0 < steps[-1]["goodput"] < 1
    assert productive / steps[-1]["goodput"] > sum(line["seconds"] for line in steps)
