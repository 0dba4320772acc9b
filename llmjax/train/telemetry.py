"""What a run costs beside what it learns: gauges, which add their figures to every record.

A gauge is called with each tick and returns numbers by name. None of them asks the device for
anything that is not there already.
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
    """The share of a run's wall time that went into steps that count.

    Wall time runs from the run's very first start, restarts and the pauses between them included.
    Steps count when they are in the run's history: what a kill undid is not, since this hook's
    memory is saved with the checkpoints (`Checkpointer(remembering=…)`). Compiling, waiting for
    data, evaluating and saving are what is missing from 1.

    Args:
        begun: when the run first began, in seconds since the epoch, as `time.time` says.
    """

    def __init__(self, begun: float) -> None:
        self._begun, self._started = begun, time.monotonic()
        self._productive = self._restored = 0.0
        self._compiled = False

    def __call__(self, tick: Tick) -> dict[str, float]:
        """Counts a step; goodput, in 0…1."""
        if self._compiled:
            self._productive += max(tick.seconds - tick.data_seconds, 0.0)
        self._compiled = True  # a start's first step compiles
        # The clock of the machine may have been set back since, or differ from another machine's.
        wall = max(
            time.time() - self._begun, self._restored + time.monotonic() - self._started, 1e-9
        )
        return {"goodput": min(self._productive / wall, 1.0)}

    def get_state(self) -> float:
        """Seconds in steps that count."""
        return self._productive

    def set_state(self, state: float) -> None:
        """Takes up what `get_state` gave."""
        self._productive = self._restored = state


class CompileTime:
    """The gauge of seconds spent compiling since it was made."""

    def __init__(self) -> None:
        self._seconds = 0.0
        jax.monitoring.register_event_duration_secs_listener(self._listen)

    def _listen(self, event: str, duration_secs: float, **_: str | int) -> None:
        if event == COMPILED:
            self._seconds += duration_secs

    def __call__(self, tick: Tick) -> dict[str, float]:
        """compile_seconds, all of them."""
        del tick
        return {"compile_seconds": self._seconds}

    def close(self) -> None:
        """Stops listening."""
        jax.monitoring.unregister_event_duration_listener(self._listen)


def device_memory(tick: Tick) -> dict[str, float]:
    """Bytes in use on the fullest of this process's devices, and its share at the peak.

    Nothing where the platform does not say, as CPUs do not.
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
        steps: the first and the last step traced.
        directory: where to; `plugins/profile/…` is made in it.
        start: the step that the run starts after.

    Raises:
        ValueError: the range is empty.
    """

    def __init__(
        self, steps: tuple[int, int], directory: str | os.PathLike[str], *, start: int = 0
    ) -> None:
        self._first, self._last = steps
        if not 1 <= self._first <= self._last:
            raise ValueError(f"{self._first}:{self._last} is not a range of steps, from 1 up")
        self._directory = os.fspath(directory)
        self._open = False
        if self._first <= start + 1 <= self._last:
            self._begin()

    def due(self, step: int) -> bool:
        """Whether the trace begins or ends behind this step."""
        return step in (self._first - 1, self._last)

    def __call__(self, pause: Pause) -> None:
        """Begins or ends the trace, while no step is under way."""
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
