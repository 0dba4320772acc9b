"""Preemption: saves and exits when a signal announces that the machine will be taken away."""

import os
import signal
import sys
from collections.abc import Sequence
from types import FrameType

import jax
from jax.experimental import multihost_utils

from llmjax.train.checkpoint import Checkpointer
from llmjax.train.loop import Pause


class SaveOnSignal:
    """The state hook that saves and ends the run at a signal: SIGTERM, or Ctrl-C's SIGINT.

    The current step is finished and saved, and `SystemExit` is raised with code 0, as nothing is
    lost; the last line printed says how to resume. A second signal ends the process at once. With
    several processes, all save the same step, whichever got the signal: JAX's preemption notice,
    which listens to SIGTERM itself, lets them agree. Put this hook last.

    Args:
        checkpointer: saves the step.
        resume: the command line that resumes the run.
        signals: the signals to handle.
    """

    def __init__(
        self,
        checkpointer: Checkpointer,
        resume: str = "",
        signals: Sequence[signal.Signals] = (signal.SIGTERM, signal.SIGINT),
    ) -> None:
        self._checkpointer, self._resume = checkpointer, resume
        self._received: int | None = None
        self._several = jax.process_count() > 1
        own = [number for number in signals if not (self._several and number == signal.SIGTERM)]
        self._previous = {number: signal.signal(number, self._receive) for number in own}

    def _receive(self, number: int, _: FrameType | None) -> None:
        self._received = number
        self.restore_handlers()
        if self._several:
            os.kill(os.getpid(), signal.SIGTERM)

    def restore_handlers(self) -> None:
        """Restores the previous signal handlers."""
        for number, handler in self._previous.items():
            signal.signal(number, handler)
        self._previous = {}

    def due(self, step: int) -> bool:
        """Whether a signal was received."""
        if self._several:
            return multihost_utils.reached_preemption_sync_point(step)
        return self._received is not None

    def __call__(self, pause: Pause) -> None:
        """Saves, unless a hook before it just did, and exits."""
        if self._checkpointer.last_saved != pause.step:
            self._checkpointer(pause)
        self._checkpointer.wait()
        number = signal.Signals(self._received or signal.SIGTERM)
        where = self._checkpointer.directory / str(pause.step)
        message = f"{number.name}: saved step {pause.step} in {where}"
        if self._resume:
            message += f"; resume with\n  {self._resume}"
        if jax.process_index() == 0:
            print(message, file=sys.stderr)
        raise SystemExit(0)
