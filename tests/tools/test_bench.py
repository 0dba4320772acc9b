"""The benchmark's arithmetic, its turns, its lines and its answers; peers only under parity."""

import dataclasses
import importlib
import io
import json
import math
import os
import re
import subprocess
import sys
import types

import pytest
import rich.console

from tools import bench
from tools.benchmark import session, worker
from tools.benchmark.workloads import WORKLOADS

FINAL = {
    "peak_memory_mb": 100.0,
    "peak_device_memory_mb": None,
    "device": "cpu",
    "versions": {"python": "3"},
}

# What guessing costs: ln V for a masked token, ln 2 for each of the discriminator's verdicts.
GUESSING = {"MLM0": math.log(512), "RTD0": math.log(512) + 50 * math.log(2)}


class FakeWorker:
    """An engine whose turns take what a script says."""

    log: list[str]
    seconds = types.MappingProxyType({"llmjax": (2.0, 1.0, 3.0), "torch": (4.0, 4.0, 5.0)})
    losses = types.MappingProxyType({"llmjax": 9.0, "torch": 9.1})
    device_memory = types.MappingProxyType({"llmjax": None, "torch": None})
    parameters: int | None

    def __init__(self, engine, workload, threads, cache) -> None:
        self.engine, self.first, self.first_step_s = engine, 10.0, 12.0
        self.turns: list[dict[str, float]] = []
        self.gflops: list[float] = []
        self.loss = self.losses[engine]

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
        memory = self.device_memory[self.engine]
        return FINAL | {"parameters": self.parameters, "peak_device_memory_mb": memory}


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
    assert (ours.loss, peer.loss) == (9.0, 9.1)
    assert ours.memory_share == {"torch": 1.0}


def test_on_an_accelerator_its_memory_counts(fake, monkeypatch) -> None:
    monkeypatch.setattr(fake, "device_memory", {"llmjax": 30.0, "torch": 40.0})
    ours, peer = measured()
    assert ours.memory_share == {"torch": 0.75}
    console = rich.console.Console(width=80, file=io.StringIO(), force_terminal=False)
    bench.show([ours, peer], console)
    assert "peak MB: of the accelerator's memory" in console.file.getvalue()


def test_a_peer_of_another_size_is_no_peer(fake, monkeypatch) -> None:
    monkeypatch.setattr(fake, "parameters", 7)
    with pytest.raises(RuntimeError, match="has 7 parameters, and not"):
        measured()


def test_a_peer_that_does_other_work_is_no_peer(fake, monkeypatch) -> None:
    monkeypatch.setattr(fake, "losses", {"llmjax": 9.0, "torch": 8.0})
    with pytest.raises(RuntimeError, match=r"torch begins with a loss of 8\.000, and not 9\.000"):
        measured()


def test_a_peer_on_another_device_is_no_peer(fake, monkeypatch) -> None:
    monkeypatch.setattr(fake, "device_memory", {"llmjax": None, "torch": 40.0})
    with pytest.raises(RuntimeError, match="install both libraries for the same device"):
        measured()


def test_work_in_a_turn() -> None:
    assert WORKLOADS["W2"].tokens == 4 * 512
    assert WORKLOADS["W2-decode"].tokens == 8 * 192
    assert WORKLOADS["W2"].flops == pytest.approx(3 * WORKLOADS["W2-eval"].flops)
    assert WORKLOADS["data"].flops is WORKLOADS["W1-decode"].flops is None


def test_operations_of_masked_and_replaced_tokens() -> None:
    """From the shapes: the vocabulary only where a token is masked, attention to both sides."""
    tokens, masked, length, vocab = 16 * 128, 16 * 20, 128, 30522

    def encoder(width: int) -> int:
        return tokens * 6 * (12 * width**2 + 2 * length * width)

    mlm = encoder(384) + masked * (384**2 + vocab * 384)
    assert WORKLOADS["MLM"].flops == pytest.approx(6 * mlm, rel=0.01)
    # The generator projects the tables' 384 to its own 96 and back; the discriminator's head is
    # a dense layer at every token.
    generator = encoder(96) + tokens * 384 * 96 + masked * (96 * 384 + vocab * 384)
    rtd = encoder(384) + tokens * 384**2 + generator
    assert WORKLOADS["RTD"].flops == pytest.approx(6 * rtd, rel=0.01)


@pytest.mark.parametrize(
    "name", ["W0", "W0-eval", "W0-decode", "MLM0", pytest.param("RTD0", marks=pytest.mark.slow)]
)
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
    assert final["peak_device_memory_mb"] is None
    if name in GUESSING:
        assert turn["loss"] == pytest.approx(GUESSING[name], rel=0.03)


@pytest.mark.parity
@pytest.mark.parametrize("name", GUESSING)
@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_peers_do_the_same_work(name: str, precision: str, monkeypatch) -> None:
    """bfloat16 is what they compute in on a GPU."""
    torch = pytest.importorskip("torch")
    peers = importlib.import_module("tools.benchmark.peers")
    enabled = precision == "bfloat16"
    monkeypatch.setattr(
        peers, "_precision", lambda: torch.autocast("cpu", torch.bfloat16, enabled=enabled)
    )
    turn, parameters = peers.build(WORKLOADS[name].job(), compiled=False)
    assert parameters == WORKLOADS[name].parameters
    losses = [turn() for _ in range(20)]
    assert losses[0] == pytest.approx(GUESSING[name], rel=0.03)
    assert min(losses[10:]) < losses[0]


@pytest.mark.parity
@pytest.mark.parametrize("name", ["W0", "W0-lora", "W0-eval", "W0-decode", "GRPO0", "PPO0"])
def test_tunix_does_the_same_work(name: str) -> None:
    pytest.importorskip("tunix", reason="google-tunix is in no extra")
    tunix_peers = importlib.import_module("tools.benchmark.tunix_peers")
    workload = WORKLOADS[name]
    turn, parameters = tunix_peers.build(workload.job())
    assert parameters == workload.parameters
    losses = [turn() for _ in range(5)]
    if workload.kind in ("train", "lora", "eval"):
        guessing = math.log(workload.settings.model.vocab_size)
        assert losses[0] == pytest.approx(guessing, rel=0.03)
        assert (losses[4] < losses[0]) == (workload.kind != "eval")


@pytest.mark.parity
@pytest.mark.parametrize("name", GUESSING)
def test_peers_mask_at_the_stated_rates(name: str) -> None:
    torch = pytest.importorskip("torch")
    peers = importlib.import_module("tools.benchmark.peers")
    settings = WORKLOADS[name].settings
    tokens = torch.randint(200, 512, (1000, 1000))
    shown, labels = peers.mask(tokens, 512, **WORKLOADS[name].job()["masking"])
    chosen = labels != peers.IGNORE
    masked, kept = chosen & (shown == 103), chosen & (shown == tokens)
    assert torch.equal(labels[chosen], tokens[chosen])
    assert torch.equal(shown[~chosen], tokens[~chosen])
    rates = settings.masking
    for share, expected in (
        (chosen.float().mean(), rates.rate),
        (masked.sum() / chosen.sum(), rates.mask_share),
        (kept.sum() / chosen.sum(), 1 - rates.mask_share - rates.random_share),
    ):
        assert float(share) == pytest.approx(expected, abs=0.005)


def test_training_is_timed_without_what_reads_data() -> None:
    """On a lent GPU grain and array_record may be missing."""
    program = """
import sys
for name in ("array_record", "grain", "orbax", "sentencepiece", "zstandard", "torch"):
    sys.modules[name] = None
import tools.bench, tools.benchmark.ours, tools.benchmark.settings, tools.benchmark.worker
for workload in tools.bench.WORKLOADS.values():
    if workload.shapes in tools.benchmark.settings.SETTINGS:
        workload.job()
"""
    subprocess.run([sys.executable, "-c", program], cwd=session.ROOT, check=True)


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
        (["--against=flax"], "no peer 'flax': there are torch, torch-compile, tunix"),
        (["--rounds=0"], "--rounds=0: give 1 or more"),
        (["--against=torch"], r"pip install -e '.\[parity\]'"),
        (["--against=tunix"], r"needs tunix: pip install google-tunix"),
    ],
)
def test_bad_options_are_answered(arguments, message, capsys, monkeypatch) -> None:
    monkeypatch.setattr(bench.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(SystemExit):
        bench.main(arguments)
    assert re.search(message, capsys.readouterr().err)


def test_all_leaves_out_toys_and_what_needs_a_gpu() -> None:
    options = bench._options(["--workload=all"])
    toys = {"W0", "W0-lora", "W0-eval", "W0-decode", "MLM0", "RTD0", "GRPO0", "PPO0"}
    left_out = toys | {"G1", "G2"}
    assert set(options.workload) == set(WORKLOADS) - left_out
