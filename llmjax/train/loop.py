"""The training loop: `fit` runs steps, and hooks observe them.

The device should never wait for the host. So `fit` dispatches step i, which JAX runs in the
background, and only then reads the metrics of step i−1 and calls the hooks with them; logging and
loading the next batch are free as long as they take less time than a step:

    device   | step 1 | step 2 | step 3 |
    host        draw 2   tick 1   tick 2
                         draw 3   draw 4

A step donates the buffers of its input state. By the time the metrics of step i are read, step i+1
has consumed the state after step i. Hence two kinds of hooks:

- A plain function gets a `Tick` (step, metrics, seconds) for every step, while the next one runs.
- A `StateHook` (evaluation, samples, checkpoints) says at which steps it is `due`. There `fit`
  waits for the step and calls it with a `Pause`, a tick that also has the state after exactly this
  step, and the iterator after exactly its batches. The next step is dispatched afterwards.
"""

import concurrent.futures
import contextlib
import dataclasses
import math
import os
import pathlib
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple, Protocol, runtime_checkable

import jax
import numpy as np

from llmjax import mesh
from llmjax.train.state import TrainState
from llmjax.train.step import Step
from llmjax.train.stragglers import Stragglers

Batch = Mapping[str, np.ndarray]


@dataclasses.dataclass(frozen=True)
class Tick:
    """A completed step.

    Attributes:
        step: its number, from 1.
        metrics: its metrics as floats.
        seconds: wall time since the previous step, excluding `StateHook`s; for the first step of a
            run, the time to compile, to load the first batch and to run.
        data_seconds: part of these seconds in which the device was idle, waiting for the next
            batch.
    """

    step: int
    metrics: dict[str, float]
    seconds: float
    data_seconds: float = 0.0


@dataclasses.dataclass(frozen=True)
class Pause(Tick):
    """A completed step, before the next one begins.

    State hooks are called in order and may add to `metrics`: a checkpoint stores the metrics of an
    evaluation before it.

    Attributes:
        state: the state after `step`, only valid during the call; the next step donates its
            buffers.
        batches: the iterator, which has yielded exactly the batches of the steps so far.
    """

    state: TrainState = dataclasses.field(kw_only=True)
    batches: Iterator[Batch] = dataclasses.field(kw_only=True)


@runtime_checkable
class StateHook(Protocol):
    """A hook that needs the state, at steps that it selects."""

    def due(self, step: int) -> bool:
        """Whether to be called when `step` is complete; asked once per step."""
        ...

    def __call__(self, pause: Pause, /) -> bool | None:
        """Receives the state after the step; True makes it the last step."""
        ...


Hook = Callable[[Tick], None] | StateHook


@dataclasses.dataclass(frozen=True)
class Every:
    """The state hook that calls `hook` after every `interval` steps, and after step `last`.

    Attributes:
        interval: in steps; 0 means only after step `last`.
        hook: what to call.
        last: the run's last step, or None. If a hook ends the run early, that is its last step.
    """

    interval: int
    hook: Callable[[Pause], bool | None]
    last: int | None = None

    def __post_init__(self) -> None:
        if self.interval < 0:
            raise ValueError(f"interval={self.interval}: must not be negative (0 for none)")

    def due(self, step: int) -> bool:
        """Whether `step` is a multiple of the interval, or the last."""
        return step == self.last or (self.interval > 0 and step % self.interval == 0)

    def __call__(self, pause: Pause) -> bool | None:
        """Calls the hook."""
        return self.hook(pause)


class DivergedError(FloatingPointError):
    """Too many steps in a row had a non-finite loss or gradient, or a spike.

    Attributes:
        batches: this process's rows of the batches of these steps, by step.
    """

    def __init__(self, message: str, batches: Mapping[int, Batch]) -> None:
        super().__init__(message)
        self.batches = batches


def save_batches(batches: Mapping[int, Batch], folder: str | os.PathLike[str]) -> str:
    """Writes each step's rows as an .npz file; returns a message that says where they are."""
    path = pathlib.Path(folder)
    path.mkdir(parents=True, exist_ok=True)
    for step, batch in batches.items():
        arrays: dict[str, Any] = dict(batch)
        np.savez_compressed(path / f"step_{step}.process_{jax.process_index()}.npz", **arrays)
    return f"the batches of steps {min(batches)} to {max(batches)} are in {path}"


def fit(
    state: TrainState,
    step: Step,
    batches: Iterable[Batch],
    *,
    steps: int,
    hooks: Sequence[Hook] = (),
    max_skipped: int = 10,
) -> TrainState:
    """Trains until `steps` steps are complete, including those of a restored state.

    Args:
        state: the initial state; its buffers are donated.
        step: from `make_step`.
        batches: host batches (dicts of int32 [B/processes, S]), one per step, which `fit` places on
            the current mesh.
        steps: the number of the last step. Nothing happens if `state` is already there.
        hooks: see the module docstring. Plain hooks are called before state hooks.
        max_skipped: the run ends after this many consecutive skipped or non-finite steps.

    Returns:
        The state after the last step, which may be earlier if a hook ended the run.

    Raises:
        DivergedError: `max_skipped` consecutive steps were skipped, or their loss was not finite.
        ValueError: the batches end before the steps.
    """
    iterator = iter(batches)
    first = int(state.step) + 1
    listeners = _Listeners(hooks, max_skipped, int(state.health.in_a_row))
    running: _Running | None = None
    for number in range(first, steps + 1):
        with listeners.waiting(running):
            rows = _draw(iterator, number, steps)
        state, metrics = step(state, mesh.shard_batch(rows))
        metrics = {**metrics, **listeners.stragglers.compare()}
        if running is not None:
            listeners.tick(running)
        running = _Running(number, metrics, rows)
        due = listeners.due(number)
        if due or number in (first, steps):
            tick = listeners.tick(running)
            if listeners.pause(due, Pause(**vars(tick), state=state, batches=iterator)):
                break
            running = None
    return state


class _Running(NamedTuple):
    """A step that was dispatched."""

    step: int
    metrics: Mapping[str, jax.Array]
    batch: Batch


def _draw(batches: Iterator[Batch], number: int, steps: int) -> Batch:
    try:
        return next(batches)
    except StopIteration:
        raise ValueError(
            f"the batches ended before step {number} of {steps}: give more epochs or fewer steps"
        ) from None


def _completed(metrics: Mapping[str, jax.Array]) -> float:
    """Waits for a step, and returns when it was complete."""
    jax.block_until_ready(metrics)
    return time.perf_counter()


class _Listeners:
    """Calls the hooks, times the steps and ends a run that has diverged."""

    def __init__(self, hooks: Sequence[Hook], max_skipped: int, skipped: int) -> None:
        self._plain = [hook for hook in hooks if not isinstance(hook, StateHook)]
        self._state_hooks = [hook for hook in hooks if isinstance(hook, StateHook)]
        self._max_skipped = max_skipped
        self._skipped = skipped
        self._bad: dict[int, Batch] = {}  # the batches of skipped steps in a row
        self._since = time.perf_counter()
        self._idle = 0.0  # seconds that the device has waited for a batch since then
        self.stragglers = Stragglers()
        self._watcher = concurrent.futures.ThreadPoolExecutor(1, "idle")

    @contextlib.contextmanager
    def waiting(self, running: _Running | None) -> Iterator[None]:
        """A context for drawing a batch: measures how long the device is idle meanwhile."""
        began = time.perf_counter()
        done = self._watcher.submit(_completed, running.metrics) if running else None
        yield
        if done is None or done.done():
            idle_since = max(began, done.result()) if done else began
            self._idle += time.perf_counter() - idle_since

    def due(self, step: int) -> list[StateHook]:
        return [hook for hook in self._state_hooks if hook.due(step)]

    def tick(self, running: _Running) -> Tick:
        """Waits until the step is complete, then calls the plain hooks."""
        read = jax.device_get(dict(running.metrics))
        values = {name: float(value) for name, value in read.items()}
        self.stragglers.begin()
        now = time.perf_counter()
        tick = Tick(running.step, values, now - self._since, self._idle)
        self._since, self._idle = now, 0.0
        for hook in self._plain:
            hook(tick)
        self._check(tick, running.batch)
        return tick

    def pause(self, due: Sequence[StateHook], pause: Pause) -> bool:
        """Calls the state hooks that are due, untimed; True if one of them ends the run."""
        answers = [hook(pause) for hook in due]  # all of them, even if one ends the run
        ends = any(answers)
        if ends:
            for hook in self._state_hooks:
                if isinstance(hook, Every) and hook.last is not None and hook not in due:
                    hook(pause)
        self._since = time.perf_counter()
        self.stragglers.begin()
        return ends

    def _check(self, tick: Tick, batch: Batch) -> None:
        loss = tick.metrics.get("loss", 0.0)
        if not tick.metrics.get("skipped", 0.0) > 0 and math.isfinite(loss):
            self._skipped, self._bad = 0, {}
            return
        self._skipped += 1
        self._bad[tick.step] = batch
        if self._skipped >= self._max_skipped:
            raise DivergedError(
                f"step {tick.step}: the last {self._skipped} steps had a non-finite loss or "
                f"gradient (loss {loss:g} now), a spike, or no target, and were skipped; lower the "
                "learning rate, lengthen the warm-up, or inspect the data of these steps",
                self._bad,
            )
