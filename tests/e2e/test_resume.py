"""Law 7: a run that is killed and started again is the run that was never interrupted."""

import json
import os
import pathlib
import signal
import subprocess
import sys
import time

import jax
import numpy as np
import pytest

from experiments import runs

TIMINGS = ("seconds", "tokens_per_s", "mfu")


def start(run_dir: pathlib.Path) -> subprocess.Popen:
    flags = ["--recipe=tiny", "--steps=80", "--checkpoint_every=10", f"--run_dir={run_dir}"]
    command = [sys.executable, "-m", "experiments.pretrain", *flags, "--evaluate_every=40"]
    environment = os.environ | {"JAX_PLATFORMS": "cpu"}
    return subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL)


def records(run_dir: pathlib.Path) -> list[dict]:
    lines = (run_dir / "metrics.jsonl").read_text().splitlines()
    plain = [json.loads(line) for line in lines]
    return [{k: v for k, v in record.items() if k not in TIMINGS} for record in plain]


def kill_after(run_dir: pathlib.Path, lines: int, process: subprocess.Popen) -> None:
    path = run_dir / "metrics.jsonl"
    while process.poll() is None:
        if path.exists() and path.read_text().count("\n") >= lines:
            process.send_signal(signal.SIGKILL)
            break
        time.sleep(0.01)
    assert process.wait() == -signal.SIGKILL


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    root = tmp_path_factory.mktemp("runs")
    whole, cut = root / "whole", root / "cut"
    assert start(whole).wait() == 0
    kill_after(cut, 25, start(cut))
    assert start(cut).wait() == 0
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
