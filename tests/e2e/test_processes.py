"""Several real processes over loopback train as one does, also after a kill, in any number."""

import pathlib
import signal
import socket

import numpy as np
import pytest

from experiments import processes
from experiments.flags import FlagError
from tests.e2e.processes import records, start

FLAGS = (
    "--recipe=tiny",
    "--steps=8",
    "--batch_size=8",
    "--sequence_length=32",
    "--model.num_layers=1",
    "--model.embed_dim=32",
    "--model.dropout.hidden=0.1",
    "--checkpoint_every=3",
    "--optimizer.schedule=constant",
    "--optimizer.warmup_steps=0",
    "--evaluate_every=4",
    "--evaluate_batches=2",
    "--sample_tokens=4",
    "--mesh.data=1",
    "--mesh.fsdp=-1",
    "--corpus=python_topics",
    "--data.tokenizer.kind=bytes",
    "--model.vocab_size=260",
)


def together(count: int, run_dir: pathlib.Path, *flags: str, devices: int, patch) -> list:
    """So many processes of a run, with some CPU devices each."""
    patch.setenv("JAX_NUM_CPU_DEVICES", str(devices))
    with socket.socket() as free:
        free.bind(("localhost", 0))
        coordinator = f"localhost:{free.getsockname()[1]}"
    told = [()]
    if count > 1:
        shared = (f"--coordinator={coordinator}", f"--processes={count}")
        told = [(*shared, f"--process={index}") for index in range(count)]
    return [start([*FLAGS, f"--run_dir={run_dir}", *flags, *of]) for of in told]


def losses(run_dir: pathlib.Path) -> list[tuple[int, float]]:
    """By step, of training and validation."""
    found = [
        (line["step"], line.get("loss", line.get("validation_loss"))) for line in records(run_dir)
    ]
    assert len({*found}) == len(found)
    return found


@pytest.mark.slow
def test_two_processes_train_as_one_and_go_on_as_one(tmp_path, monkeypatch):
    data = f"--data.directory={tmp_path / 'data'}"
    alone, both = tmp_path / "alone", tmp_path / "both"
    (process,) = together(1, alone, data, devices=2, patch=monkeypatch)
    assert process.wait(timeout=200) == 0
    pair = together(2, both, data, "--steps=5", devices=1, patch=monkeypatch)
    assert [process.wait(timeout=200) for process in pair] == [0, 0]
    assert sorted(path.name for path in (both / "checkpoints").iterdir())[-1] == "5"
    # The order of the data and what is dropped are the same; sums are rounded in another order.
    np.testing.assert_allclose(losses(both)[:4], losses(alone)[:4], rtol=1e-5)
    (process,) = together(1, both, data, devices=2, patch=monkeypatch)
    assert process.wait(timeout=200) == 0
    np.testing.assert_allclose(
        [line for line in losses(both) if line[0] != 5],
        [line for line in losses(alone) if line[0] != 5],
        rtol=1e-5,
    )


@pytest.mark.slow
def test_two_processes_that_split_heads_read_the_same_rows(tmp_path, monkeypatch):
    """And go on as two that split the rows."""
    data, split = f"--data.directory={tmp_path / 'data'}", ("--mesh.fsdp=1", "--mesh.tensor=2")
    alone, both = tmp_path / "alone", tmp_path / "both"
    (process,) = together(1, alone, data, devices=1, patch=monkeypatch)
    assert process.wait(timeout=200) == 0
    pair = together(2, both, data, "--steps=5", *split, devices=1, patch=monkeypatch)
    assert [process.wait(timeout=200) for process in pair] == [0, 0]
    pair = together(2, both, data, devices=1, patch=monkeypatch)
    assert [process.wait(timeout=200) for process in pair] == [0, 0]
    np.testing.assert_allclose(
        [line for line in losses(both) if line[0] != 5],
        [line for line in losses(alone) if line[0] != 5],
        rtol=1e-5,
    )


@pytest.mark.slow
def test_four_processes_are_killed_and_go_on_as_two(tmp_path, monkeypatch):
    data = f"--data.directory={tmp_path / 'data'}"
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    four = together(4, whole, data, devices=1, patch=monkeypatch)
    assert [process.wait(timeout=200) for process in four] == [0] * 4
    four = together(4, cut, data, devices=1, patch=monkeypatch)
    while not (cut / "checkpoints" / "3").exists():
        assert all(process.poll() is None for process in four)
    four[2].send_signal(signal.SIGKILL)
    assert all(process.wait(timeout=200) != 0 for process in four)
    two = together(2, cut, data, devices=2, patch=monkeypatch)
    assert [process.wait(timeout=200) for process in two] == [0, 0]
    np.testing.assert_allclose(losses(cut), losses(whole), rtol=1e-5)


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ({"process": 1}, "--process=1 needs --coordinator"),
        ({"coordinator": "host:1"}, "needs --processes and --process"),
        ({"coordinator": "host:1", "processes": 2, "process": 2}, "the processes are 0 to 1"),
        ({"coordinator": "host:1", "cluster": "auto"}, "give one of them"),
        ({"cluster": "nowhere"}, "cannot join the other processes"),
    ],
)
def test_flags_that_do_not_fit_are_named(flags, message, monkeypatch):
    holders = {
        "cluster": processes.CLUSTER,
        "coordinator": processes.COORDINATOR,
        "processes": processes.PROCESSES,
        "process": processes.PROCESS,
    }

    class Value:
        def __init__(self, value):
            self.value = value

    for name in holders:
        monkeypatch.setattr(processes, name.upper(), Value(flags.get(name)))
    with pytest.raises(FlagError, match=message):
        processes.join()
