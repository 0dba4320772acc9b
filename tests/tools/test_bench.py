"""The benchmark's arithmetic, its turns, its lines and its answers; none of it needs torch."""

import dataclasses
import io
import json
import os
import re
import types

import pytest
import rich.console

from tools import bench
from tools.benchmark import session, worker
from tools.benchmark.workloads import WORKLOADS

FINAL = {"peak_memory_mb": 100.0, "device": "cpu", "versions": {"python": "3"}}


class FakeWorker:
    """An engine whose turns take what a script says."""

    log: list[str]
    seconds = types.MappingProxyType({"llmjax": (2.0, 1.0, 3.0), "torch": (4.0, 4.0, 5.0)})
    parameters: int | None

    def __init__(self, engine, workload, threads, cache) -> None:
        self.engine, self.first, self.first_step_s = engine, 10.0, 12.0
        self.turns: list[dict[str, float]] = []
        self.gflops: list[float] = []

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.log.append(f"{self.engine} ends")

    def start(self) -> None:
        self.log.append(f"{self.engine} starts")

    def round(self) -> float:
        self.log.append(self.engine)
        self.turns.append({"seconds": self.seconds[self.engine][len(self.turns)], "cores": 2.0})
        self.gflops.append(100.0 if self.engine == "llmjax" else 200.0)
        return self.turns[-1]["seconds"]

    def ask(self, command: str):
        assert command == "finish"
        return FINAL | {"parameters": self.parameters}


@pytest.fixture
def fake(monkeypatch) -> type[FakeWorker]:
    monkeypatch.setattr(FakeWorker, "log", [], raising=False)
    monkeypatch.setattr(FakeWorker, "parameters", WORKLOADS["W1"].parameters, raising=False)
    monkeypatch.setattr(session, "Worker", FakeWorker)
    monkeypatch.setattr(session, "PAUSE_S", 0.0)
    return FakeWorker


def measured() -> list[session.Result]:
    return session.measure(
        WORKLOADS["W1"], ["llmjax", "torch"], rounds=3, threads=2, say=lambda line: None
    )


def test_engines_take_turns_in_alternating_order(fake) -> None:
    measured()
    assert fake.log[:2] == ["llmjax starts", "torch starts"]
    assert fake.log[2:8] == ["llmjax", "torch", "torch", "llmjax", "llmjax", "torch"]
    assert sorted(fake.log[8:]) == ["llmjax ends", "torch ends"]


def test_figures_are_medians_and_their_ratios(fake) -> None:
    ours, peer = measured()
    assert (ours.step_s, peer.step_s) == (2.0, 4.0)
    assert ours.speedup == {"torch": 2.0}
    assert peer.speedup == {"llmjax": 0.5}
    assert ours.tokens_per_s == 16 * 256 / 2.0
    assert ours.compile_s == 8.0
    assert ours.matmul_gflops == peer.matmul_gflops == 200.0
    # 6N + 6·L·S·D with N = 6·12·D² + 8192·D, biases and norms aside.
    flops = 16 * 256 * (6 * (72 * 384**2 + 8192 * 384) + 6 * 6 * 256 * 384)
    assert ours.matmul_share == pytest.approx(flops / 2.0 / 200e9, rel=0.01)


def test_a_peer_of_another_size_is_no_peer(fake, monkeypatch) -> None:
    monkeypatch.setattr(fake, "parameters", 7)
    with pytest.raises(RuntimeError, match="has 7 parameters, and not"):
        measured()


def test_work_in_a_turn() -> None:
    assert WORKLOADS["W2"].tokens == 4 * 512
    assert WORKLOADS["W2-decode"].tokens == 8 * 192
    assert WORKLOADS["W2"].flops == 3 * WORKLOADS["W2-eval"].flops
    assert WORKLOADS["data"].flops is WORKLOADS["W1-decode"].flops is None


@pytest.mark.parametrize("name", ["W0", "W0-eval", "W0-decode"])
def test_a_worker_obeys(name: str) -> None:
    """In this process: builds the program, takes a turn, and says what it was."""
    job = WORKLOADS[name].job() | {"engine": "llmjax", "threads": os.cpu_count()}
    lines = [json.dumps(job), "turn", "matmul 64", "finish"]
    replies = io.StringIO()
    worker.serve(io.StringIO("".join(f"{line}\n" for line in lines)), replies)
    turn, matmul, final = map(json.loads, replies.getvalue().splitlines())
    assert turn["seconds"] > 0
    assert turn["cores"] > 0
    assert matmul["gflops"] > 0
    assert final["parameters"] == WORKLOADS[name].parameters
    assert {"python", "jax"} <= set(final["versions"])
    assert final["peak_memory_mb"] > 50


def test_json_lines(capsys) -> None:
    """The whole way, in a process of its own."""
    bench.main(["--workload=W0", "--rounds=2", "--json"])
    (line,) = capsys.readouterr().out.splitlines()
    record = json.loads(line)
    assert list(record) == [field.name for field in dataclasses.fields(session.Result)]
    assert record["workload"] == "W0"
    assert record["tokens_per_s"] == pytest.approx(8 * 64 / record["step_s"])
    assert len(record["turns_s"]) == 2
    assert record["first_step_s"] > record["compile_s"] > 0
    assert 0 < record["matmul_share"] < 1


def test_the_table_fits_a_terminal(fake) -> None:
    ours, peer = measured()
    peer = dataclasses.replace(peer, engine="torch-compile")
    ours = dataclasses.replace(ours, speedup={"torch-compile": 2.0})
    loader = dataclasses.replace(ours, workload="data", tokens_per_s=1e6, matmul_share=None)
    console = rich.console.Console(width=80, file=io.StringIO(), force_terminal=False)
    bench.show([ours, peer, loader], console)
    text = console.file.getvalue()
    row = next(line for line in text.splitlines() if "torch-compile" in line)
    assert " ".join(row.split()) == "W1 torch-compile 4.000 1,024 12.0 100 2.0 0.44 2.00"
    assert "the loader feeds 488 × what a W1 step eats" in text
    assert "…" not in text


def test_a_process_that_fails_is_named(capfd, monkeypatch) -> None:
    monkeypatch.setattr(session.sys, "executable", "false")
    with pytest.raises(SystemExit, match="the llmjax process ended with status 1"):
        bench.main(["--workload=W0"])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--workload=W3"], "no workload 'W3': there are W0"),
        (["--against=flax"], "no peer 'flax': there are torch, torch-compile"),
        (["--rounds=0"], "--rounds=0: give 1 or more"),
        (["--against=torch"], r"pip install -e '.\[parity\]'"),
    ],
)
def test_bad_options_are_answered(arguments, message, capsys, monkeypatch) -> None:
    monkeypatch.setattr(bench.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(SystemExit):
        bench.main(arguments)
    assert re.search(message, capsys.readouterr().err)


def test_all_leaves_out_the_toy() -> None:
    options = bench._options(["--workload=all"])
    assert set(options.workload) == {name for name in WORKLOADS if not name.startswith("W0")}
