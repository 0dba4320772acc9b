"""Turns of a trainer that owns its loop."""

import threading
from collections.abc import Callable
from typing import Any


class Turns:
    """Runs one iteration of a trainer's loop per call, in a thread that waits between them.

    Args:
        train: runs the loop; it calls the function that it is given after every iteration.
    """

    def __init__(self, train: Callable[[Callable[[], None]], Any]) -> None:
        self._go, self._done = threading.Semaphore(0), threading.Semaphore(0)
        self._failed: BaseException | None = None

        def run() -> None:
            try:
                train(self._pause)
            except BaseException as error:
                self._failed = error
                self._done.release()

        self._thread = threading.Thread(target=run, daemon=True)

    def _pause(self) -> None:
        """Signals the end of an iteration and waits for the next call."""
        self._done.release()
        self._go.acquire()

    def __call__(self) -> None:
        """Runs the loop for one iteration.

        Raises:
            RuntimeError: the loop failed.
        """
        if self._thread.is_alive():
            self._go.release()
        else:
            self._thread.start()
        self._done.acquire()
        if self._failed is not None:
            raise RuntimeError(f"the loop failed: {self._failed}") from self._failed
