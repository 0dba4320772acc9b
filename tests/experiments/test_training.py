"""A whole run, in this process: what early stopping leaves behind."""

import dataclasses
import pickle
import signal
import time
import types

import jax
import numpy as np
import pytest

from experiments import runs, scoring, training
from experiments.recipes import RECIPES
from experiments.tasks import Pretraining
from llmjax import evaluation, planning
from llmjax.data.config import DataConfig, Source, TokenizerConfig
from llmjax.data.mixture import MixtureConfig
from llmjax.mesh import MeshConfig
from llmjax.optim import OptimizerConfig, Rule
from llmjax.train import integrity
from llmjax.train.early_stopping import EarlyStoppingConfig
from llmjax.train.metrics import read_jsonl

TEXTS = ["The import statement", "x = [1, 2]"]


@pytest.fixture(scope="module")
def text(tmp_path_factory):
    """A folder for tokens, which both runs read."""
    return tmp_path_factory.mktemp("data")


@pytest.fixture(autouse=True)
def known_rate(monkeypatch):
    """Measuring it on eight devices that share two cores takes longer than the run."""
    monkeypatch.setattr(planning, "peak_flops", lambda devices: 1e12)


def recipe(text="", **changes):
    """Learns for a while and then, at a rate that rises past what it can bear, forgets."""
    tiny = RECIPES["tiny"]()
    model = dataclasses.replace(
        tiny.model, num_layers=1, embed_dim=16, num_heads=2, num_kv_heads=2, mlp_dim=16
    )
    optimizer = OptimizerConfig(learning_rate=9.0, warmup_steps=30, clip_norm=0.0)
    settings = {
        "data": dataclasses.replace(tiny.data, directory=str(text)),
        "model": model, "optimizer": optimizer, "steps": 40, "batch_size": 8, "sequence_length": 16,
        "evaluate_every": 2, "evaluate_batches": 1, "checkpoint_every": 50, "sample_every": 0,
        "sample_tokens": 0, "log_norms": False, "early_stopping": EarlyStoppingConfig(2),
        "spikes": dataclasses.replace(tiny.spikes, sigma=0.0),
    }  # fmt: skip
    return dataclasses.replace(tiny, **(settings | changes))


def test_a_run_that_stops_early_leaves_its_best_weights(text, tmp_path, capsys, monkeypatch):
    """They are read by default, and give the best evaluation again. No save can be interrupted."""
    write, before, handlers = integrity.write, signal.getsignal(signal.SIGTERM), set()

    def slowly(folder, **options):
        time.sleep(0.05)
        handlers.add(signal.getsignal(signal.SIGTERM))
        write(folder, **options)

    monkeypatch.setattr(integrity, "write", slowly)
    training.run(recipe(text), tmp_path)
    assert handlers
    assert before not in handlers
    losses = {
        record["step"]: record["validation_loss"]
        for record in read_jsonl(tmp_path / "metrics.jsonl")
        if "validation_loss" in record
    }
    best = min(losses, key=losses.get)
    assert max(losses) == best + 4 < 40
    assert f"stopped early at step {max(losses)}" in capsys.readouterr().out
    assert not (tmp_path / "samples.jsonl").read_text()  # none were asked for
    with jax.set_mesh(runs.task_of(recipe(), tmp_path).make_mesh()):
        model, last = runs.load(tmp_path), runs.load(tmp_path, best=False)
        assert (model.step, last.step) == (best, max(losses))
        found = [runs.evaluate_model(m, text, 8)["validation_loss"] for m in (model, last)]
        scorer = pickle.loads(pickle.dumps(scoring.RunScorer(str(tmp_path))))
        ours = evaluation.TextScorer(model.params, model.config, model.tokenizer, 16)
        assert scorer(TEXTS) == ours(TEXTS)
    folder = tmp_path / "checkpoints"
    manifests = {step: folder / str(step) / "manifest.json" for step in (best, max(losses))}
    said = scorer.fingerprint
    manifests[max(losses)].write_text("{}")
    assert scorer.fingerprint == said  # it is that of the best
    manifests[best].write_text("{}")
    assert scorer.fingerprint != said
    assert found[0] < found[1]
    assert all(np.isfinite(found))


def test_a_run_may_end_before_its_next_step(text, tmp_path, monkeypatch, capsys):
    """As that of a policy does, if its first rollouts are beyond what a guard allows."""
    why: list[str] = []
    monkeypatch.setattr(Pretraining, "ready", lambda *_: why.append("too far"))
    monkeypatch.setattr(Pretraining, "ended", lambda _: "".join(why))
    assert training.run(recipe(text), tmp_path).exists()
    assert "ended at step 0: too far" in capsys.readouterr().out
    assert not [r for r in read_jsonl(tmp_path / "metrics.jsonl") if "loss" in r]


@pytest.mark.slow
def test_a_watcher_ends_a_run_where_it_says(text, tmp_path):
    seen = []

    def watch(pause):
        seen.append((pause.step, pause.metrics["validation_loss"]))
        return pause.step == 4

    training.run(recipe(text), tmp_path, training.Options(watch=watch))
    assert [step for step, _ in seen] == [2, 4]
    assert runs.load(tmp_path, best=False).step == 4


def test_no_sample_ends_a_run(text, tmp_path, draw):
    """A prompt that leaves no room loses its beginning; drawn ids may be beyond the tokenizer's."""
    made = recipe(text, sample_prompt="import " * 20, sample_tokens=24)
    model = dataclasses.replace(made.model, max_length=32, vocab_size=512)
    task = runs.task_of(dataclasses.replace(made, model=model), tmp_path)
    task.prepare()
    assert task.tokenizer().vocab_size < 300
    prompt, continuation = task.sample(draw(task.spec))
    assert prompt == made.sample_prompt
    assert len(continuation.encode(errors="replace")) < 24 * 3


def test_a_model_is_used_where_its_mesh_does_not_fit(tmp_path):
    """Here are eight devices, over which parameters divide, or rows, or neither."""
    trained = {"mesh": MeshConfig(data=1, fsdp=16), "batch_size": 16}
    task = runs.task_of(recipe(**trained), tmp_path)
    with pytest.raises(runs.FlagError, match="needs 16 devices, but there are 8"):
        task.make_mesh()
    assert task.make_mesh_to_serve().shape["fsdp"] == 8
    odd = dataclasses.replace(recipe().model, embed_dim=20)
    task = runs.task_of(recipe(model=odd, **trained), tmp_path)
    assert task.make_mesh_to_serve().shape["data"] == 8
    task = runs.task_of(recipe(), tmp_path)
    assert task.make_mesh_to_serve() == task.make_mesh()
    task = runs.task_of(recipe(mesh=MeshConfig(data=3), batch_size=3), tmp_path)
    assert task.make_mesh_to_serve().size == 1


def test_a_run_that_never_trains_leaves_its_folder_free(tmp_path):
    missing = (Source("web", str(tmp_path / "missing")),)
    wanted = RECIPES["tiny"]()
    wrong = dataclasses.replace(wanted, data=DataConfig(missing, TokenizerConfig("bytes")))
    with pytest.raises(runs.FlagError, match="nothing to read"):
        training.run(wrong, tmp_path)
    with pytest.raises(MemoryError), runs.opened(tmp_path, wanted, resume=False):
        raise MemoryError
    with pytest.raises(MemoryError), runs.opened(tmp_path, wanted, resume=False):
        (tmp_path / "metrics.jsonl").write_text('{"step": 1}\n')
        raise MemoryError
    with pytest.raises(runs.FlagError, match="holds a run of another recipe: data.sources was"):
        training.run(wrong, tmp_path)


def test_what_cannot_be_evaluated_is_told_in_one_line(tmp_path, monkeypatch):
    """Such as more rows at a time than devices divide."""

    class Refusing:
        def evaluate(self, params, batches):
            raise ValueError("a batch of 3 rows does not divide over 8 devices")

    monkeypatch.setattr(runs, "held_out", lambda *_: [])
    model = types.SimpleNamespace(task=Refusing(), params={})
    with pytest.raises(runs.FlagError, match="a batch of 3 rows does not divide"):
        runs.evaluate_model(model, tmp_path, 3)


@pytest.mark.parametrize("most", [0.0, 4.0])
def test_what_more_steps_change_is_told(most, tmp_path, capsys):
    tiny = RECIPES["tiny"]()
    data = dataclasses.replace(tiny.data, mixture=MixtureConfig(max_epochs=most))
    for steps in (200, 300):
        runs.open_run(tmp_path, dataclasses.replace(tiny, data=data, steps=steps), resume=True)
    said = capsys.readouterr().out
    assert "200 steps become 300; from here on, the cosine schedule uses the new number" in said
    assert ("shares of sources" in said) == (most > 0)


def test_a_rule_that_decides_nothing_is_told_before_the_run(tmp_path):
    rules = OptimizerConfig(rates=(Rule("layers/atention", 0.1),))
    with pytest.raises(runs.FlagError, match="optimizer.rates: .*near: .*attention"):
        training.run(recipe(optimizer=rules), tmp_path)
    assert not (tmp_path / "data").exists()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"early_stopping": EarlyStoppingConfig(2, metric="grad_norm", mode="min")},
            "early_stopping.metric=grad_norm: evaluations have .*perplexity",
        ),
        ({"validation_share": 0.0}, "validation split in .* holds no documents"),
    ],
)
def test_what_the_first_evaluation_would_refuse_is_told_before_the_first_step(
    changes, message, text, tmp_path
):
    if changes.keys() == {"validation_share"}:
        changes = {"data": dataclasses.replace(RECIPES["tiny"]().data, **changes)}
    with pytest.raises(runs.FlagError, match=message):
        training.run(recipe(text, **changes), tmp_path)
    records = tmp_path / "metrics.jsonl"
    assert not (records.exists() and records.read_text())
