"""Gauges: goodput by a clock of our own, compile time, memory, traces of a range of steps."""

import time

import jax
import jax.numpy as jnp
import pytest

from llmjax.train import telemetry
from llmjax.train.loop import Tick, fit
from tests.train.toy import Counting, start, step


class Clock:
    """Wall and monotonic time that a test sets."""

    def __init__(self, monkeypatch) -> None:
        self.wall, self.monotonic = 1000.0, 50.0
        monkeypatch.setattr(time, "time", lambda: self.wall)
        monkeypatch.setattr(time, "monotonic", lambda: self.monotonic)

    def pass_by(self, seconds: float) -> None:
        self.wall += seconds
        self.monotonic += seconds


def steps(goodput: telemetry.Goodput, clock: Clock, *seconds: float) -> float:
    for number, span in enumerate(seconds):
        clock.pass_by(span)
        found = goodput(Tick(number, {}, span, 0.25 * span))["goodput"]
    return found


def test_goodput_is_the_share_of_steps_that_count_over_all_starts(monkeypatch):
    clock = Clock(monkeypatch)
    goodput = telemetry.Goodput(begun=1000.0)
    # 20 s to compile, then 8 steps of 10 s of which a quarter is waiting for data.
    assert steps(goodput, clock, 20.0, *[10.0] * 8) == pytest.approx(60 / 100)
    saved = goodput.get_state()
    steps(goodput, clock, *[10.0] * 10)  # lost: the run is killed before the next save
    clock.pass_by(100.0)
    again = telemetry.Goodput(begun=1000.0)
    again.set_state(saved)
    assert steps(again, clock, 20.0, *[10.0] * 8) == pytest.approx(120 / 400)


def test_a_clock_set_back_leaves_goodput_a_share(monkeypatch):
    clock = Clock(monkeypatch)
    goodput = telemetry.Goodput(begun=1000.0)
    steps(goodput, clock, 20.0, 10.0)
    clock.wall = 0.0
    assert steps(goodput, clock, 10.0) == pytest.approx(15 / 40)
    again = telemetry.Goodput(begun=1000.0)
    again.set_state(goodput.get_state())
    assert 0 < steps(again, clock, 20.0, 10.0) <= 1


def test_compile_time_is_what_compiling_takes():
    gauge = telemetry.CompileTime()
    try:
        began = time.perf_counter()
        jax.jit(lambda x: jnp.sin(x) * 3.25)(jnp.ones(3)).block_until_ready()
        spent = gauge(Tick(1, {}, 0.1))["compile_seconds"]
        assert 0 < spent < time.perf_counter() - began
        assert gauge(Tick(2, {}, 0.1)) == {"compile_seconds": spent}
        jax.jit(lambda x: jnp.cos(x) * 4.25)(jnp.ones(3))
        more = gauge(Tick(3, {}, 0.1))["compile_seconds"]
        assert more > spent
    finally:
        gauge.close()
    jax.jit(lambda x: jnp.tan(x) * 5.25)(jnp.ones(3))
    assert gauge(Tick(4, {}, 0.1)) == {"compile_seconds": more}


def test_memory_is_the_fullest_devices_and_silent_where_nothing_is_known(monkeypatch):
    assert telemetry.device_memory(Tick(1, {}, 0.1)) == {}  # CPUs do not say

    class Device:
        def __init__(self, used, peak):
            self.stats = {"bytes_in_use": used, "peak_bytes_in_use": peak, "bytes_limit": 1000}

        def memory_stats(self):
            return self.stats

    monkeypatch.setattr(jax, "local_devices", lambda: [Device(100, 900), Device(300, 500)])
    found = telemetry.device_memory(Tick(1, {}, 0.1))
    assert found == {"memory_bytes": 300.0, "memory_peak_share": 0.9}


@pytest.mark.parametrize(("begun", "range_"), [(0, (1, 2)), (0, (3, 4)), (2, (2, 30))])
def test_a_range_of_steps_is_traced(begun, range_, tmp_path):
    profiler = telemetry.Profiler(range_, tmp_path, start=begun)
    state = start().replace(step=jnp.int32(begun))
    fit(state, step, Counting(), steps=begun + 5, hooks=[profiler])
    profiler.close()
    traces = list(tmp_path.glob("plugins/profile/*/*.xplane.pb"))
    assert len(traces) == 1
    assert traces[0].stat().st_size > 1000


def test_steps_before_and_after_leave_no_trace(tmp_path):
    profiler = telemetry.Profiler((30, 40), tmp_path)
    fit(start(), step, Counting(), steps=5, hooks=[profiler])
    profiler.close()
    assert not list(tmp_path.iterdir())
    with pytest.raises(ValueError, match="5:4 is not a range"):
        telemetry.Profiler((5, 4), tmp_path)
    with pytest.raises(ValueError, match="3:4: the run goes on after step 4"):
        telemetry.Profiler((3, 4), tmp_path, start=4)
