"""Gauges of a run's efficiency, whose figures are added to every record.

A gauge is called with each tick and returns numbers by name. None of them waits for the device.
"""

import os
import time
from collections.abc import Callable, Mapping
from typing import Any

import jax

from llmjax.train.host_memory import COMPILED
from llmjax.train.loop import Pause, Tick

Gauge = Callable[[Tick], Mapping[str, float]]


class Goodput:
    """The share of a run's wall time spent in productive steps.

    Wall time counts from the run's very first start, including restarts and the time between them.
    Steps are productive if they are in the run's history: steps lost by a kill are not, as this
    hook's state is saved with the checkpoints (`Checkpointer(remembering=…)`). The rest is
    compiling, waiting for data, evaluating and saving.

    Args:
        begun: when the run first began, in seconds since the epoch, as from `time.time`.
    """

    def __init__(self, begun: float) -> None:
        self._begun, self._started = begun, time.monotonic()
        self._productive = self._restored = 0.0
        self._compiled = False

    def __call__(self, tick: Tick) -> dict[str, float]:
        """Counts a step; returns the goodput, in [0, 1]."""
        if self._compiled:
            self._productive += max(tick.seconds - tick.data_seconds, 0.0)
        self._compiled = True  # the first step after a start compiles
        # The clock may have been set back, or the run may have started on another machine.
        wall = max(
            time.time() - self._begun, self._restored + time.monotonic() - self._started, 1e-9
        )
        return {"goodput": min(self._productive / wall, 1.0)}

    def get_state(self) -> float:
        """Seconds in productive steps."""
        return self._productive

    def set_state(self, state: float) -> None:
        """Restores a state of `get_state`."""
        self._productive = self._restored = state


class CompileTime:
    """The gauge of seconds spent compiling since its creation."""

    def __init__(self) -> None:
        self._seconds = 0.0
        jax.monitoring.register_event_duration_secs_listener(self._listen)

    def _listen(self, event: str, duration_secs: float, **_: str | int) -> None:
        if event == COMPILED:
            self._seconds += duration_secs

    def __call__(self, tick: Tick) -> dict[str, float]:
        """compile_seconds, the total so far."""
        del tick
        return {"compile_seconds": self._seconds}

    def close(self) -> None:
        """Stops listening."""
        jax.monitoring.unregister_event_duration_listener(self._listen)


def device_memory(tick: Tick) -> dict[str, float]:
    """Bytes in use on this process's fullest device, and the peak share of device memory.

    Empty if the platform does not report memory, as on CPUs.
    """
    del tick
    stats: list[dict[str, Any]] = [s for d in jax.local_devices() if (s := d.memory_stats())]
    if not stats:
        return {}
    found = {"memory_bytes": float(max(s["bytes_in_use"] for s in stats))}
    peaks = [
        s["peak_bytes_in_use"] / s["bytes_limit"]
        for s in stats
        if s.get("bytes_limit") and "peak_bytes_in_use" in s
    ]
    return found | ({"memory_peak_share": max(peaks)} if peaks else {})


class Profiler:
    """The state hook that writes a trace of some steps, for TensorBoard and Perfetto.

    Args:
        steps: the first and the last step to trace.
        directory: output folder; `plugins/profile/…` is created in it.
        start: the step after which the run starts.

    Raises:
        ValueError: the range is empty, or over before the run starts.
    """

    def __init__(
        self, steps: tuple[int, int], directory: str | os.PathLike[str], *, start: int = 0
    ) -> None:
        self._first, self._last = steps
        if not 1 <= self._first <= self._last:
            raise ValueError(f"{self._first}:{self._last} is not a range of steps from 1 on")
        if self._last <= start:
            raise ValueError(f"{self._first}:{self._last}: the run goes on after step {start}")
        self._directory = os.fspath(directory)
        self._open = False
        if self._first <= start + 1 <= self._last:
            self._begin()

    def due(self, step: int) -> bool:
        """Whether the trace begins or ends after this step."""
        return step in (self._first - 1, self._last)

    def __call__(self, pause: Pause) -> None:
        """Begins or ends the trace, while no step is running."""
        if pause.step == self._last:
            self.close()
        else:
            self._begin()

    def close(self) -> None:
        """Writes the trace if it is still open."""
        if self._open:
            self._open = False
            jax.profiler.stop_trace()

    def _begin(self) -> None:
        self._open = True
        jax.profiler.start_trace(self._directory)
