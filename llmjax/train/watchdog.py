"""A watchdog that ends a hung run and shows where it hung."""

import faulthandler
import os
import pathlib
import sys
import threading
import time
from collections.abc import Iterable, Iterator
from typing import Self, TypeVar

from llmjax.train.loop import Tick

T = TypeVar("T")


class Watchdog:
    """The hook that ends the process when nothing completes for `seconds`.

    It writes the Python stack of every thread to stderr and to a file in the run folder, and exits
    at once without cleanup, which may itself hang. The clock starts with the first completed step,
    so compiling is exempt; steps and batches of `watched` restart it. Choose a deadline longer than
    the slowest of these, and than saving.

    Args:
        seconds: the deadline, or None for no watchdog.
        directory: the run folder.
        name: name of the file; processes that share the folder need different ones.
        exit_code: of the process; 124 as for `timeout`.
    """

    def __init__(
        self,
        seconds: float | None,
        directory: str | os.PathLike[str],
        *,
        name: str = "watchdog.txt",
        exit_code: int = 124,
    ) -> None:
        if seconds is not None and seconds <= 0:
            raise ValueError(f"seconds={seconds}: must be positive, or None for no watchdog")
        self._seconds, self._exit_code = seconds, exit_code
        self._report = pathlib.Path(directory) / name
        self._step, self._last = 0, time.monotonic()
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __call__(self, tick: Tick) -> None:
        """Restarts the clock, as a step is complete."""
        self._step, self._last = tick.step, time.monotonic()
        if self._thread is None and self._seconds is not None:
            self._thread = threading.Thread(target=self._watch, name="watchdog", daemon=True)
            self._thread.start()

    def watched(self, batches: Iterable[T]) -> Iterator[T]:
        """Yields the batches, such as an evaluation's, and restarts the clock with each."""
        for batch in batches:
            self._last = time.monotonic()
            yield batch

    def close(self) -> None:
        """Stops watching."""
        self._stop.set()
        if self._thread is not None:
            self._thread.join()

    def _watch(self) -> None:
        assert self._seconds is not None
        while (left := self._last + self._seconds - time.monotonic()) > 0:
            if self._stop.wait(left):
                return
        message = f"watchdog: nothing completed for {self._seconds:g} s after step {self._step}\n"
        try:
            with self._report.open("w") as file:
                file.write(message)
                file.flush()
                faulthandler.dump_traceback(file, all_threads=True)
            print(self._report.read_text(), file=sys.__stderr__, flush=True)
        finally:
            os._exit(self._exit_code)
