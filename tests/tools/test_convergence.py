"""Both sides of the comparison are given the same, and the verdict is the means'; no torch."""

import dataclasses
import json
import re

import numpy as np
import pytest

from experiments.recipes import RECIPES
from llmjax import models, optim
from tools import convergence

TEXT = (b"the cat sat on the mat and the dog sat on the log\n" * 80)[:3000]


@pytest.fixture(scope="module")
def task() -> convergence.Task:
    recipe = RECIPES["nanogpt_cpu"]()
    small = dataclasses.replace(
        recipe,
        model=dataclasses.replace(recipe.model, num_layers=1, embed_dim=32, max_length=16),
        optimizer=dataclasses.replace(recipe.optimizer, learning_rate=1e-2, warmup_steps=5),
        steps=150,
        batch_size=4,
        sequence_length=16,
    )
    return convergence.make_task(TEXT, small, evaluate_every=100)


def test_targets_follow_their_tokens() -> None:
    tokens, targets = convergence.windows(np.arange(10, 30), np.array([0, 7]), 3)
    np.testing.assert_array_equal(tokens, [[10, 11, 12], [17, 18, 19]])
    np.testing.assert_array_equal(targets, [[11, 12, 13], [18, 19, 20]])


def test_validation_is_the_last_tenth_once_in_order(task) -> None:
    tokens = np.concatenate([tokens.ravel() for tokens, _ in task.validation])
    held_out = np.frombuffer(TEXT[2700:], np.uint8).astype(int) + 4
    assert 0 <= len(held_out) - len(tokens) <= 4 * 16
    np.testing.assert_array_equal(tokens, held_out[: len(tokens)])
    assert len(task.train) == 2700


def test_batches_depend_on_the_seed_alone(task) -> None:
    first, again, other = task.batches(1), task.batches(1), task.batches(2)
    assert len(first) == task.recipe.steps
    np.testing.assert_array_equal(first, again)
    assert not np.array_equal(first, other)


def test_rates_are_those_published() -> None:
    """The recipe's schedule is nanoGPT's formula."""
    recipe = RECIPES["nanogpt_cpu"]()
    schedule = optim.schedule(recipe.optimizer, recipe.steps)
    steps = [0, 1, 50, 99, 100, 101, 700, 1500, 1999]
    rates = [convergence.published_rate(step, recipe) for step in steps]
    np.testing.assert_allclose([float(schedule(step)) for step in steps], rates, rtol=2e-5)
    assert max(rates) == 1e-3
    assert rates[-1] == pytest.approx(1e-4, rel=1e-3)


def test_the_recipe_is_the_published_configuration() -> None:
    recipe = RECIPES["nanogpt_cpu"]()
    config, settings = recipe.model, recipe.optimizer
    assert (config.num_layers, config.num_heads, config.embed_dim) == (4, 4, 128)
    assert (config.tied, config.bias, config.activation) == (True, "none", "gelu")
    assert config.dropout == models.Dropout()
    assert (recipe.sequence_length, recipe.batch_size, recipe.steps) == (64, 12, 2000)
    assert (settings.beta1, settings.beta2, settings.weight_decay) == (0.9, 0.99, 0.1)
    for path in ("embedding", "positions", "layers/mlp/up", "layers/attention/query"):
        assert not any(re.search(rule.pattern, path) for rule in settings.decays)


def test_llmjax_learns_the_text(task) -> None:
    said = []
    losses = convergence.run_llmjax(task, 0, lambda step, loss: said.append((step, loss)))
    assert list(losses) == [100, 150]
    assert said == list(losses.items())
    assert losses[150] < 1.0 < np.log(260)


@pytest.mark.parametrize(("torch_loss", "fails"), [(1.99, False), (2.1, True), (1.9, True)])
def test_the_verdict(torch_loss, fails, monkeypatch, tmp_path, capsys) -> None:
    monkeypatch.setattr(convergence, "run_llmjax", lambda task, seed, say: {2000: 2.0 + seed / 100})
    monkeypatch.setattr(convergence, "run_torch", lambda task, seed, say: {2000: torch_loss})
    monkeypatch.setattr(convergence.importlib.util, "find_spec", lambda name: True)
    arguments = ["--seeds=2", f"--json={tmp_path}/losses.json"]
    if fails:
        with pytest.raises(SystemExit, match="the mean losses differ by"):
            convergence.main(arguments)
    else:
        convergence.main(arguments)
    record = json.loads((tmp_path / "losses.json").read_text())
    assert record["losses"]["llmjax"] == [{"2000": 2.0}, {"2000": 2.01}]
    assert record["difference"] == pytest.approx(2.005 / torch_loss - 1)
    assert "2.0050" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--text=none.txt"], "there is no such file"),
        (["--seeds=0"], "give 1 or more"),
        ([], "pip install -e"),
    ],
)
def test_bad_options_are_answered(arguments, message, capsys, monkeypatch) -> None:
    monkeypatch.setattr(convergence.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(SystemExit):
        convergence.main(arguments)
    assert message in capsys.readouterr().err


def test_a_short_text_is_refused() -> None:
    with pytest.raises(ValueError, match="at least 7690 are needed"):
        convergence.make_task(b"short", RECIPES["nanogpt_cpu"]())
