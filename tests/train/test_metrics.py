"""Metrics files hold every step once, whatever happened to the run."""

import json
import sys

import pytest

from llmjax.train.loop import Tick
from llmjax.train.metrics import (
    JsonlWriter,
    Recorder,
    TensorBoardWriter,
    Throughput,
    WandbWriter,
    read_jsonl,
)


def tick(step: int, seconds: float = 0.5, **metrics: float) -> Tick:
    return Tick(step, {"loss": 4.0 / step, "tokens": 1000.0, **metrics}, seconds)


def test_a_line_has_what_the_issue_promises(tmp_path):
    path = tmp_path / "run" / "metrics.jsonl"
    with JsonlWriter(path) as writer:
        throughput = Throughput(flops_per_token=6e6, peak_flops=1e11, chips=4)
        recorder = Recorder([writer], throughput, gauges=[lambda tick: {"twice": 2.0 * tick.step}])
        recorder(tick(1, learning_rate=1e-3))
        recorder.write({"step": 1, "validation_loss": 3.0})
        first, second = (json.loads(line) for line in path.read_text().splitlines())
    assert first == {
        "step": 1,
        "loss": 4.0,
        "tokens": 1000.0,
        "learning_rate": 1e-3,
        "tokens_per_s": 2000.0,
        "tokens_per_s_per_chip": 500.0,
        "mfu": 2000.0 * 6e6 / 1e11,
        "twice": 2.0,
        "seconds": 0.5,
        "data_seconds": 0.0,
    }
    assert second == {"step": 1, "validation_loss": 3.0}


def test_resuming_keeps_each_step_once_and_drops_a_torn_line(tmp_path):
    path = tmp_path / "metrics.jsonl"
    with JsonlWriter(path) as writer:
        for step in range(1, 8):
            writer.write({"step": step, "loss": 0.1 * step})
    whole = path.read_text()
    path.write_text(whole + '{"step": 8, "lo')
    with JsonlWriter(path, step=5) as writer:
        for step in range(6, 8):
            writer.write({"step": step, "loss": 0.1 * step})
    assert path.read_text() == whole
    JsonlWriter(path).close()
    assert path.read_text() == ""


def test_a_run_that_begins_again_has_what_is_before_its_first_step_once(tmp_path):
    """A policy is evaluated before it, also when its run was killed before a checkpoint."""
    path = tmp_path / "metrics.jsonl"
    for _ in range(2):
        with JsonlWriter(path) as writer:
            writer.write({"step": 0, "validation_reward": 0.5})
            writer.write({"step": 1, "loss": 0.1})
    assert [record["step"] for record in read_jsonl(path)] == [0, 1]
    JsonlWriter(path, step=1).close()
    assert [record["step"] for record in read_jsonl(path)] == [0, 1]


def test_a_broken_line_in_the_middle_is_reported(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 1}\n\x00garbage\n[3]\n{"step": 2}\n{"st')
    with pytest.warns(UserWarning, match=r"metrics.jsonl:[23]: left out"):
        assert read_jsonl(path) == [{"step": 1}, {"step": 2}]


def test_lines_stay_json_when_the_loss_is_not_a_number(tmp_path):
    path = tmp_path / "metrics.jsonl"
    with JsonlWriter(path) as writer:
        writer.write({"step": 1, "loss": float("nan"), "grad_norm": float("inf")})
    assert path.read_text() == '{"step": 1, "loss": null, "grad_norm": null}\n'


def test_throughput_leaves_the_compile_out():
    throughput = Throughput()
    throughput.measure(tick(41, seconds=60.0))
    assert throughput.tokens_per_s is None
    for step in range(42, 46):
        assert throughput.measure(tick(step)) == {"tokens_per_s": 2000.0}
    assert throughput.tokens_per_s == 2000.0
    assert throughput.mfu(2000.0) is None


def test_every_nth_step_and_the_first_are_written():
    class Steps(list):
        def write(self, record):
            self.append(record["step"])

    steps = Steps()
    recorder = Recorder([steps], every=4)
    for step in range(3, 14):
        recorder(tick(step))
    assert steps == [3, 4, 8, 12]
    with pytest.raises(ValueError, match="every=0"):
        Recorder([steps], every=0)


def test_tensorboard_files_are_written(tmp_path):
    writer = TensorBoardWriter(tmp_path, step=0)
    writer.write({"step": 1, "loss": 2.0, "note": "not a number"})
    writer.write({"step": 1, "validation_loss": 3.0})
    writer.close()
    (events,) = tmp_path.iterdir()
    content = events.read_bytes()
    assert b"train/loss" in content
    assert b"validation/loss" in content
    assert b"note" not in content


def test_weights_and_biases_gets_the_same_names_and_is_asked_for_by_its_extra(
    tmp_path, monkeypatch
):
    """Against a package that only notes what it is called with."""
    calls = []

    class Noted:
        def init(self, **options):
            calls.append(options)
            return self

        def log(self, numbers, step):
            calls.append((step, numbers))

        def finish(self):
            calls.append("finished")

    monkeypatch.setitem(sys.modules, "wandb", Noted())
    writer = WandbWriter("mine", "run7", tmp_path, {"seed": 1})
    writer.write({"step": 3, "loss": 2.0, "note": "no number"})
    writer.write({"step": 3, "validation_loss": 3.0, "perplexity": 20.0})
    writer.write({"step": 4, "reward": 0.1})  # of rollouts
    writer.write({"step": 4, "validation_reward": 0.5})
    writer.close()
    assert calls[0]["project"] == "mine"
    assert (calls[0]["id"], calls[0]["resume"], calls[0]["config"]) == (
        "run7",
        "allow",
        {"seed": 1},
    )
    assert calls[1:] == [
        (3, {"train/loss": 2.0}),
        (3, {"validation/loss": 3.0, "validation/perplexity": 20.0}),
        (4, {"train/reward": 0.1}),
        (4, {"validation/reward": 0.5}),
        "finished",
    ]
    monkeypatch.delitem(sys.modules, "wandb")
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ModuleNotFoundError, match=r"pip install 'llmjax\[wandb\]'"):
        WandbWriter("mine", "run7", tmp_path)
