"""Machines are taken back with a signal and a minute's notice: save, then leave."""

import signal
import sys
from collections.abc import Sequence
from types import FrameType

import jax
from jax.experimental import multihost_utils

from llmjax.train.checkpoint import Checkpointer
from llmjax.train.loop import Pause


class SaveOnSignal:
    """The state hook that saves and ends the run when a signal (by default SIGTERM) comes.

    The step under way is finished and saved, then `SystemExit` is raised with the shell's code for
    the signal (143 for SIGTERM). A second signal ends the process at once. With several processes
    they agree on the step through JAX's preemption notice. Put it last among the hooks.
    """

    def __init__(
        self, checkpointer: Checkpointer, signals: Sequence[signal.Signals] = (signal.SIGTERM,)
    ) -> None:
        self._checkpointer = checkpointer
        self._received: int | None = None
        self._previous = {number: signal.signal(number, self._receive) for number in signals}

    def _receive(self, number: int, _: FrameType | None) -> None:
        self._received = number
        self.restore_handlers()

    def restore_handlers(self) -> None:
        """Puts the former signal handlers back."""
        for number, handler in self._previous.items():
            signal.signal(number, handler)
        self._previous = {}

    def due(self, step: int) -> bool:
        """Whether a signal has come."""
        if jax.process_count() > 1 and multihost_utils.reached_preemption_sync_point(step):
            self._received = self._received or signal.SIGTERM
            return True
        return jax.process_count() == 1 and self._received is not None

    def __call__(self, pause: Pause) -> None:
        """Saves, unless a hook before it just did, and exits."""
        if self._checkpointer.last_saved != pause.step:
            self._checkpointer(pause)
        self._checkpointer.wait()
        number = signal.Signals(self._received or signal.SIGTERM)
        where = self._checkpointer.directory / str(pause.step)
        message = f"{number.name}: saved step {pause.step} in {where}; resume to go on"
        print(message, file=sys.stderr)
        raise SystemExit(128 + number)
