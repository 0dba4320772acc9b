"""A sweep finds what does well, ends what does not, and goes on after a kill."""

import dataclasses
import io
import json
import math
import shlex
import sys

import pytest
from rich.console import Console

from experiments import search_space, sweep, sweep_report
from experiments.flags import FlagError
from experiments.recipes import FINETUNING, RECIPES
from experiments.sweeper import Sweep
from llmjax.train.loop import DivergedError, Pause
from tests.pages import Page, check_charts, check_self_contained
from tests.train.toy import Counting, start

pytest.importorskip("optuna")

SPACE = ("optimizer.learning_rate=log:1e-5:1e-1", "optimizer.name=adamw,muon")


class Toy:
    """Stands for training: a loss that falls towards that of the recipe, evaluated four times.

    Keeps a "checkpoint", the evaluations it has written, so that a killed run goes on.
    """

    def __init__(self, killed_at=None, diverges=()):
        self.recipes, self.evaluations = {}, []
        self.killed_at, self.diverges = killed_at, diverges

    def final(self, recipe):
        """Best at a rate of 1e-3, and with muon."""
        off = abs(math.log10(recipe.optimizer.learning_rate) + 3)
        return 1 + off + (0.5 if recipe.optimizer.name == "adamw" else 0.0)

    def __call__(self, recipe, folder, options):
        self.recipes[int(folder.name)] = recipe
        if int(folder.name) in self.diverges:
            raise DivergedError("too many steps in a row", {})
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / "metrics.jsonl"
        done = path.read_text().count("\n") if path.exists() else 0
        for step in range(10 * (done + 1), 50, 10):
            if (int(folder.name), step) == self.killed_at:
                raise SystemExit(0)
            metrics = {"validation_loss": self.final(recipe) + 4 / step}
            with path.open("a") as file:
                file.write(json.dumps({"step": step, **metrics}) + "\n")
            self.evaluations.append((int(folder.name), step))
            pause = Pause(step, metrics, 0.1, state=start(), batches=Counting())
            if options.watch(pause):
                return


def make(folder, train, pruner="none", space=SPACE, **changes):
    recipe = dataclasses.replace(RECIPES["tiny"](), steps=40, evaluate_every=10, **changes)
    return Sweep(recipe, search_space.parse_all(space), folder, pruner, train=train)


def test_it_finds_what_does_well_and_adds_trials(tmp_path):
    train = Toy()
    trials = make(tmp_path, train).run(6)
    assert {trial.number for trial in trials} == set(range(6)) == set(train.recipes)
    assert [t.value for t in trials] == sorted(t.value for t in trials)
    for trial in trials:
        recipe = train.recipes[trial.number]
        assert trial.value == pytest.approx(train.final(recipe) + 0.1)
        assert (trial.state, trial.steps) == ("complete", (10, 20, 30, 40))
        assert recipe.data.directory == str(tmp_path / "data")
    again = make(tmp_path, train).run(14)
    assert len(again) == 14
    assert again[0].value <= trials[0].value
    assert len(train.evaluations) == 14 * 4
    assert again[0].values["optimizer.name"] == "muon"
    assert again[0].value < 1.6  # within half a decade of the best rate


def test_a_killed_trial_goes_on_and_the_search_is_the_same(tmp_path):
    whole, cut = Toy(), Toy(killed_at=(2, 30))
    expected = make(tmp_path / "whole", whole).run(4)
    with pytest.raises(SystemExit):
        make(tmp_path / "cut", cut).run(4)
    cut.killed_at = None
    found = make(tmp_path / "cut", cut).run(4)
    assert found == expected  # their curves too, of which other trials are pruned
    assert sorted(cut.evaluations) == sorted(whole.evaluations)


def test_trials_share_their_data_only_if_they_can(tmp_path):
    """Examples are cut to what a row holds, so that other rows need others."""
    pretraining, tuning = RECIPES["tiny"](), FINETUNING["full"]()
    for recipe, field, shared in (
        (pretraining, "sequence_length=16,32", True),
        (pretraining, "corpus=chitchat,python_topics", False),
        (tuning, "steps=100:200", True),
        (tuning, "sequence_length=128,256", False),
        (tuning, "base=runs/a,runs/b", False),
        (tuning, "data.max_length=128,256", False),
    ):
        space = search_space.parse_all((field,), type(recipe))
        found = Sweep(recipe, space, tmp_path, "none")
        value = space[0].choices[0] if space[0].choices else 100
        directory = found.recipe_of({space[0].name: value}, 0).data.directory
        assert directory == (str(tmp_path / "data") if shared else ""), field


@pytest.mark.parametrize("pruner", ["median", "hyperband"])
def test_what_does_worse_is_ended_early(pruner, tmp_path):
    train = Toy()
    trials = make(tmp_path, train, pruner).run(10)
    pruned = [trial for trial in trials if trial.state == "pruned"]
    assert pruned
    assert trials[0].state == "complete"
    for trial in pruned:
        assert trial.steps[-1] < 40
        assert trial.value > trials[0].value
    assert len(train.evaluations) == sum(len(trial.steps) for trial in trials) < 40


def test_a_high_metric_is_maximised(tmp_path):
    recipe = sweep.with_metric(RECIPES["tiny"](), "accuracy")

    def train(recipe, folder, options):
        accuracy = 1 - recipe.optimizer.learning_rate
        folder.mkdir(parents=True)
        (folder / "metrics.jsonl").write_text(
            json.dumps({"step": 1, "accuracy": accuracy, "validation_loss": 1.0})
        )
        options.watch(Pause(1, {"accuracy": accuracy}, 0.1, state=start(), batches=Counting()))

    trials = Sweep(recipe, search_space.parse_all(SPACE), tmp_path, "none", train=train).run(3)
    rates = [trial.values["optimizer.learning_rate"] for trial in trials]
    assert rates == sorted(rates)
    with pytest.raises(FlagError, match="metric=kl: its name does not show"):
        sweep.with_metric(recipe, "kl")


def test_what_diverges_is_passed_over(tmp_path):
    trials = make(tmp_path, Toy(diverges=(0, 2))).run(4)
    assert {t.number for t in trials if t.state == "pruned"} == {0, 2}
    assert all(math.isnan(t.value) and "diverged" in t.note for t in trials[2:])


def test_recipes_that_cannot_be_are_told_and_end_it_when_all_are(tmp_path):
    space = ("model.num_heads=3,5", "model.num_layers=1:2")
    with pytest.raises(FlagError, match="3 trials in a row could not run.*not a multiple of"):
        make(tmp_path, Toy(), space=space).run(5)
    some = make(tmp_path / "some", Toy(), space=("model.num_heads=3,4", "seed=0:9")).run(4)
    assert {t.state for t in some if t.values["model.num_heads"] == "3"} == {"failed"}
    assert {t.state for t in some if t.values["model.num_heads"] == "4"} == {"complete"}


def test_a_folder_holds_one_sweep(tmp_path):
    make(tmp_path, Toy()).run(1)
    with pytest.raises(FlagError, match=r"other settings \(recipe.seed\)"):
        make(tmp_path, Toy(), seed=7).run(2)
    with pytest.raises(FlagError, match=r"other settings \(space.optimizer.name\)"):
        make(tmp_path, Toy(), space=SPACE[:1]).run(2)

    def inside(recipe, folder, options):
        make(tmp_path, Toy()).run(2)

    with pytest.raises(FlagError, match="a sweep is running there"):
        make(tmp_path, inside).run(4)
    for every in (0, 200):
        with pytest.raises(FlagError, match=f"evaluate_every={every} makes none"):
            recipe = dataclasses.replace(RECIPES["tiny"](), steps=200, evaluate_every=every)
            Sweep(recipe, search_space.parse_all(SPACE), tmp_path)


def test_the_search_is_shown_and_ends_with_a_command(tmp_path, monkeypatch):
    searched = make(tmp_path, Toy(), "median")
    trials = searched.run(4)
    text = io.StringIO()
    Console(file=text, width=120).print(sweep_report.table(trials, searched.space, "loss", rows=3))
    assert "3 best of 4 trials" in text.getvalue()
    assert f"{trials[0].value:.4f}" in text.getvalue()
    page = sweep_report.render("tiny", trials, searched.space, searched.watched)
    assert Page(page).tags.count("svg") == 2 + len(SPACE)
    assert f"Best validation_loss{trials[0].value:.4f}trial {trials[0].number}" in Page(page).text
    check_self_contained(page)
    check_charts(page)
    history, evaluations, rates, names = sweep_report.charts_of(
        trials, searched.space, searched.watched
    )
    assert history.curves[0].y[-1] == trials[0].value
    assert evaluations.curves[-1].y.tolist() == list(trials[0].curve)
    assert rates.log_x
    assert names.ticks == ("adamw", "muon")
    for chart in (rates, names):
        assert sum(curve.x.size for curve in chart.curves) == 4
    typed = ["sweep", "--recipe=tiny", "--steps", "40", "--trials", "8", f"--sweep={SPACE[0]}"]
    monkeypatch.setattr(sys, "argv", typed)
    words = shlex.split(sweep.command(searched, trials[0], "pretrain"))
    assert words[:6] == ["python", "-m", "experiments.pretrain", "--recipe=tiny", "--steps", "40"]
    given = dict(word.removeprefix("--").split("=") for word in words[6:])
    assert float(given["optimizer.learning_rate"]) == trials[0].values["optimizer.learning_rate"]
    assert given["optimizer.name"] == trials[0].values["optimizer.name"]
    assert given["data.directory"] == str(tmp_path / "data")
    assert given["run_dir"] == str(tmp_path / "best")
