"""Early stopping ends a run where its metric says, and the same after a kill."""

import dataclasses
import math

import jax
import pytest

from llmjax.train.checkpoint import Checkpointer
from llmjax.train.early_stopping import EarlyStopping, EarlyStoppingConfig, SaveBest
from llmjax.train.loop import Every, Pause, fit
from tests.train.toy import Counting, start, step


def waits(config: EarlyStoppingConfig, values: list[float]) -> list[int]:
    hook = EarlyStopping(config)
    counts = []
    for number, value in enumerate(values, start=1):
        metrics = {config.metric: value}
        hook(Pause(number, metrics, 0.1, state=start(), batches=Counting()))
        counts.append(hook.waited)
    return counts


def test_waiting_begins_again_with_every_better_metric():
    assert waits(EarlyStoppingConfig(2), [3.0, 2.0, 2.0, 1.9, math.nan]) == [0, 0, 1, 0, 1]
    assert waits(EarlyStoppingConfig(2, 0.5), [3.0, 2.6, 2.5, 2.4, 2.0]) == [0, 1, 2, 0, 1]
    up = EarlyStoppingConfig(2, metric="accuracy", mode="max")
    assert waits(up, [0.5, 0.6, 0.4, 0.6, 0.7]) == [0, 0, 1, 2, 0]
    assert waits(EarlyStoppingConfig(2), [math.nan, math.inf, 5.0]) == [1, 2, 0]


LOSSES = {2: 3.0, 4: 2.0, 6: 2.5, 8: 2.1, 10: 2.2, 12: 1.0}


def run(folder, steps, patience=3, metric="validation_loss", values=LOSSES):
    """A run with an evaluation every other step and a checkpoint every fifth, and at the best."""
    early = EarlyStopping(EarlyStoppingConfig(patience, metric=metric))
    watched = {"best_metric": metric, "mode": early.config.direction}
    with Checkpointer(folder, remembering={"early": early}, **watched) as checkpointer:
        restored = checkpointer.restore_latest(jax.eval_shape(start))
        state, batches = (restored.state, Counting()) if restored else (start(), Counting())
        if restored:
            batches.set_state(restored.data)

        def evaluate(pause):
            pause.metrics.update({"validation_loss": 1.0, metric: values[pause.step]})
            return early(pause)

        end = fit(
            state,
            step,
            batches,
            steps=steps,
            hooks=[
                Every(2, evaluate),
                Every(5, checkpointer, last=steps),
                Every(2, SaveBest(early, checkpointer)),
            ],
        )
        checkpointer.wait()
        return early, int(end.step), checkpointer.steps()


def test_the_run_ends_with_a_checkpoint_where_patience_does(tmp_path):
    early, last, saved = run(tmp_path, 12)
    assert (early.best, early.best_step, early.stopped, last) == (2.0, 4, True, 10)
    assert saved[-1] == 10
    again = EarlyStopping(EarlyStoppingConfig(3))
    with Checkpointer(tmp_path, remembering={"early": again}) as checkpointer:
        checkpointer.restore_latest(jax.eval_shape(start))
    assert again.stopped
    assert dataclasses.replace(again.config, patience=4).patience > again.waited


def test_a_resumed_run_that_watches_something_else_begins_to_wait(tmp_path):
    """The best of one metric says nothing about another, nor about the other direction."""
    run(tmp_path, 7)
    rising = {step: 0.1 * step for step in LOSSES}
    early, last, _ = run(tmp_path, 12, metric="macro_f1", values=rising)
    assert (early.best, early.best_step, early.waited, last) == (pytest.approx(1.2), 12, 0, 12)
    state = early.get_state()
    for config, best in (("max", state["best"]), ("min", None)):
        other = EarlyStopping(EarlyStoppingConfig(metric="macro_f1", mode=config))
        other.set_state(state)
        assert other.best == best
    old = EarlyStopping(EarlyStoppingConfig())
    old.set_state({"best": 2.0, "best_step": 4, "waited": 1})  # as older runs saved it
    assert (old.best, old.best_step, old.waited) == (2.0, 4, 1)


@pytest.mark.parametrize("cut", [3, 5, 7, 9])
def test_a_run_that_was_cut_stops_where_the_whole_one_does(cut, tmp_path):
    run(tmp_path, cut)
    early, last, _ = run(tmp_path, 12)
    assert (early.best, early.best_step, early.waited, last) == (2.0, 4, 3, 10)


@pytest.mark.parametrize(
    ("metric", "values"),
    [("validation_loss", LOSSES), ("macro_f1", {step: -loss for step, loss in LOSSES.items()})],
)
def test_what_it_leaves_is_the_best_of_all_evaluations(metric, values, tmp_path, assert_bitwise):
    """Bitwise the state after that step, though no checkpoint was due there."""
    run(tmp_path / "run", 12, metric=metric, values=values)
    mode = EarlyStoppingConfig(metric=metric).direction
    with Checkpointer(tmp_path / "run", best_metric=metric, mode=mode) as checkpointer:
        best = checkpointer.restore_best(jax.eval_shape(start))
    assert (best.step, best.metrics[metric]) == (4, values[4])
    expected = fit(start(), step, Counting(), steps=4)
    assert_bitwise(best.state.params, expected.params)


def test_without_patience_nothing_stops_and_the_best_is_known(tmp_path):
    early, last, _ = run(tmp_path, 12, patience=0)
    assert (early.best, early.best_step, last) == (1.0, 12, 12)


@pytest.mark.parametrize(
    ("metric", "direction"),
    [
        ("validation_loss", "min"),
        ("pseudo_perplexity", "min"),
        ("bits_per_byte", "min"),
        ("macro_f1", "max"),
        ("discriminator_accuracy", "max"),
        ("exact_match", "max"),
    ],
)
def test_names_of_metrics_tell_which_is_best(metric, direction):
    assert EarlyStoppingConfig(metric=metric).direction == direction
    assert EarlyStoppingConfig(metric=metric, mode="max").direction == "max"
    values = waits(EarlyStoppingConfig(metric=metric), [0.5, 0.6, 0.4])
    assert values == ([0, 1, 0] if direction == "min" else [0, 0, 1])


def test_bad_settings_are_named():
    with pytest.raises(ValueError, match="metric=kl: its name does not show"):
        EarlyStoppingConfig(metric="kl")
    assert EarlyStoppingConfig(metric="kl", mode="min").direction == "min"
    for settings in ({"patience": -1}, {"min_delta": -0.1}, {"min_delta": math.nan}):
        with pytest.raises(ValueError, match=next(iter(settings))):
            EarlyStoppingConfig(**settings)
    with pytest.raises(ValueError, match="metric=accuracy: evaluations have loss"):
        EarlyStopping(EarlyStoppingConfig(metric="accuracy"))(
            Pause(1, {"loss": 1.0}, 0.1, state=start(), batches=Counting())
        )


def test_training_steps_are_not_among_the_best_evaluations():
    """A classifier reports its accuracy on the batch of every step under the same name."""
    records = [
        {"step": 1, "loss": 0.1, "accuracy": 1.0},
        {"step": 1, "validation_loss": 0.7, "accuracy": 0.6},
        {"step": 2, "loss": 0.1, "accuracy": 0.9},
        {"step": 2, "validation_loss": 0.8, "accuracy": 0.5},
    ]
    assert EarlyStoppingConfig(metric="accuracy").best_of(records) is records[1]


def test_the_best_of_records_is_the_first_that_has_the_best_value():
    losses = [None, 3.0, 2.0, 2.0, "x"]
    records = [{"step": 0}, *({"step": i, "validation_loss": x} for i, x in enumerate(losses, 1))]
    lowest, highest = (EarlyStoppingConfig(mode=mode).best_of(records) for mode in ("min", "max"))
    assert lowest is records[3]
    assert highest is records[2]
    assert EarlyStoppingConfig().best_of(records[:2]) is None
