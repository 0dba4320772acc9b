"""`fit`: every step is told once and in order, and whoever needs the state gets the right one."""

import math
import time

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from llmjax.train.checkpoint import Checkpointer
from llmjax.train.loop import DivergedError, Every, Pause, Tick, fit, save_batches
from tests.train.toy import Counting, start, step


def test_every_step_is_told_once_in_order_and_state_matches():
    ticks: list[Tick] = []
    pauses = []

    def look(pause: Pause) -> None:
        assert ticks[-1].step == pause.step  # plain hooks first
        pauses.append((pause.step, int(pause.state.step), pause.batches.get_state()["position"]))

    end = fit(start(), step, Counting(), steps=10, hooks=[Every(4, look, last=10), ticks.append])
    assert int(end.step) == 10
    assert [tick.step for tick in ticks] == list(range(1, 11))
    assert pauses == [(4, 4, 4), (8, 8, 8), (10, 10, 10)]

    state, losses, batches = start(), [], Counting()
    for _ in range(10):
        state, metrics = step(state, jax.tree.map(jnp.asarray, next(batches)))
        losses.append(float(metrics["loss"]))
    assert [tick.metrics["loss"] for tick in ticks] == losses
    np.testing.assert_array_equal(end.params["w"], state.params["w"])


def test_the_next_step_is_dispatched_before_metrics_are_read():
    events = []

    class Metric:
        def __init__(self, number):
            self.number = number

        def __array__(self, *_, **__):
            events.append(f"read {self.number}")
            return np.float32(0)

    def fake(state, _):
        number = int(state.step) + 1
        events.append(f"run {number}")
        return state.replace(step=np.int32(number)), {"loss": Metric(number)}

    fit(start(), fake, Counting(), steps=4)
    assert events == ["run 1", "read 1", "run 2", "run 3", "read 2", "run 4", "read 3", "read 4"]


def test_state_hooks_are_outside_the_seconds_of_a_step():
    ticks: list[Tick] = []
    fit(
        start(),
        step,
        Counting(),
        steps=6,
        hooks=[Every(2, lambda _: time.sleep(0.2)), ticks.append],
    )
    assert max(tick.seconds for tick in ticks[1:]) < 0.15


def test_what_one_state_hook_measures_the_next_can_store(tmp_path):
    with Checkpointer(tmp_path) as checkpointer:
        evaluate = Every(3, lambda pause: pause.metrics.update(validation_loss=float(pause.step)))
        fit(start(), step, Counting(), steps=6, hooks=[evaluate, Every(3, checkpointer)])
        checkpointer.wait()
        assert checkpointer.restore_best(start()).metrics["validation_loss"] == 3.0


def test_resuming_anywhere_is_bitwise_the_run_that_never_stopped(tmp_path):
    def run(steps, state, batches, checkpointer, losses):
        hooks = [lambda tick: losses.update({tick.step: tick.metrics["loss"]})]
        return fit(state, step, batches, steps=steps, hooks=[*hooks, Every(2, checkpointer)])

    whole: dict[int, float] = {}
    with Checkpointer(tmp_path / "whole") as checkpointer:
        expected = run(9, start(), Counting(), checkpointer, whole)
    for stop in (3, 6):
        losses: dict[int, float] = {}
        with Checkpointer(tmp_path / str(stop)) as checkpointer:
            run(stop, start(), Counting(), checkpointer, losses)
            checkpointer.wait()
            restored = checkpointer.restore_latest(jax.eval_shape(start))
            batches = Counting()
            batches.set_state(restored.data)
            end = run(9, restored.state, batches, checkpointer, losses)
        assert restored.step == stop // 2 * 2
        assert losses == whole
        np.testing.assert_array_equal(end.params["w"], expected.params["w"])


def test_a_finished_run_is_left_alone():
    state = start().replace(step=jnp.int32(5))
    assert fit(state, step, Counting(0), steps=5) is state


def test_batches_that_end_early_are_named():
    with pytest.raises(ValueError, match="ended before step 4 of 9"):
        fit(start(), step, Counting(end=3), steps=9)


def test_skipped_steps_in_a_row_end_the_run_by_name(tmp_path):
    batches, ticks = Counting(), []

    def jump(_):
        batches.position = 2000

    with pytest.raises(DivergedError, match=r"step 7: the last 4 .* \(loss nan now\)") as ended:
        hooks = [Every(3, jump), ticks.append]
        fit(start(), step, batches, steps=50, hooks=hooks, max_skipped=4)
    assert [math.isnan(tick.metrics["loss"]) for tick in ticks] == [False] * 3 + [True] * 4
    # The batches that each of these steps had, to be looked at.
    where = save_batches(ended.value.batches, tmp_path / "diverged")
    assert where == f"the batches of steps 4 to 7 are in {tmp_path / 'diverged'}"
    found = sorted((tmp_path / "diverged").iterdir())
    assert [int(np.load(path)["tokens"][0, 0]) for path in found] == [2001, 2002, 2003, 2001]


def test_a_resumed_run_goes_on_counting_skipped_steps():
    state = start()
    health = state.health.replace(in_a_row=jnp.int32(3))
    batches = Counting()
    batches.position = 2000
    with pytest.raises(DivergedError, match="step 1: the last 4 steps"):
        fit(state.replace(health=health), step, batches, steps=50, max_skipped=4)


def test_a_hook_that_ends_the_run_lets_the_others_do_their_last():
    calls = []

    def stop(pause):
        calls.append(("stop", pause.step))
        return pause.step == 6

    hooks = [
        Every(3, stop),
        Every(0, lambda pause: calls.append(("final", pause.step)), last=50),
        Every(0, lambda pause: calls.append(("never", pause.step))),
        Every(2, lambda pause: calls.append(("even", pause.step)), last=50),
    ]
    assert int(fit(start(), step, Counting(), steps=50, hooks=hooks).step) == 6
    assert calls == [
        ("even", 2),
        ("stop", 3),
        ("even", 4),
        ("stop", 6),
        ("even", 6),
        ("final", 6),
    ]


@pytest.mark.parametrize(("step_seconds", "idle"), [(0.0, 0.05), (0.15, 0.0)])
def test_waiting_for_data_is_told_when_the_device_waits_too(step_seconds, idle):
    class Slow(Counting):
        def __next__(self):
            time.sleep(0.05)
            return super().__next__()

    class Lasting:
        """A metric that is ready a while after its step was dispatched."""

        def __init__(self):
            self.done = time.perf_counter() + step_seconds

        def block_until_ready(self):
            time.sleep(max(0.0, self.done - time.perf_counter()))
            return self

        def __array__(self, *_, **__):
            self.block_until_ready()
            return np.float32(1.0)

    def lasting(state, _):
        return state.replace(step=state.step + 1), {"loss": Lasting()}

    ticks: list[Tick] = []
    fit(start(), lasting, Slow(), steps=6, hooks=[ticks.append])
    # The first batch has no step to hide behind, and behind the last one none is drawn.
    assert ticks[0].data_seconds >= 0.05
    steady = [tick.data_seconds for tick in ticks[1:5]]
    np.testing.assert_allclose(np.median(steady[1:]), idle, atol=0.03)
    assert all(tick.data_seconds <= tick.seconds for tick in ticks)


def test_now_and_then_a_skipped_step_is_fine():
    class Alternating(Counting):
        def __next__(self):
            batch = super().__next__()
            return {"tokens": batch["tokens"] + 2000 * (self.position % 3 > 0)}

    assert int(fit(start(), step, Alternating(), steps=12, max_skipped=3).step) == 12


def test_intervals():
    due = [s for s in range(1, 12) if Every(5, print, last=11).due(s)]
    assert due == [5, 10, 11]
    assert [s for s in range(1, 12) if Every(0, print, last=11).due(s)] == [11]
    with pytest.raises(ValueError, match="interval=-1"):
        Every(-1, print)
