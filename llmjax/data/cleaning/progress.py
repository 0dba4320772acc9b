"""Progress display of cleaning: input with rate and time left, and documents by step."""

import contextlib
import json
import sys
import time
from collections.abc import Iterator, Sequence

import rich.console
import rich.filesize
import rich.progress

from llmjax.data.cleaning.counts import Counts
from llmjax.data.cleaning.engines import Watch
from llmjax.data.cleaning.task import Task

# Maximum share of the time spent on polling, however many tasks there are.
_SHARE = 0.1


class Display:
    """Bars of each phase's input and of what each step keeps, on stderr if it is a terminal."""

    def __enter__(self) -> "Display":
        self._bars = rich.progress.Progress(
            rich.progress.TextColumn("{task.description}"),
            rich.progress.BarColumn(),
            rich.progress.TextColumn("{task.fields[shown]}"),
            console=rich.console.Console(stderr=True),
            disable=not sys.stderr.isatty(),
        )
        self._bars.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._bars.stop()

    @contextlib.contextmanager
    def phase(self, tasks: Sequence[Task]) -> Iterator[Watch]:
        """Shows a phase.

        Yields:
            A function to call now and then to update the display.
        """
        if self._bars.disable:
            yield lambda: None
            return
        shown = _Phase(self._bars, tasks)
        yield shown.look
        shown.look()


class _Phase:
    """The bars of one phase."""

    def __init__(self, bars: rich.progress.Progress, tasks: Sequence[Task]) -> None:
        self._bars, self._tasks = bars, tasks
        self._began = time.monotonic()
        self._due = self._began
        self._finished: dict[Task, Counts] = {}
        self._size = sum(task.size for task in tasks)
        number = tasks[0].phase.number
        self._input = bars.add_task(f"Cleaning, phase {number + 1}", total=self._size, shown="")
        self._steps: dict[str, rich.progress.TaskID] = {}

    def look(self) -> None:
        """Reads what the tasks have written, and shows it if it is due."""
        began = time.monotonic()
        if began < self._due:
            return
        for task in self._tasks:
            if task not in self._finished and (counts := task.counts()) is not None:
                self._finished[task] = counts
        running = [_running(task) for task in self._tasks if task not in self._finished]
        done = sum(task.size for task in self._finished)
        done += sum(counts.read_bytes for counts in running)
        self._show(sum([*self._finished.values(), *running], Counts()), done)
        now = time.monotonic()
        self._due = now + (now - began) / _SHARE

    def _show(self, counts: Counts, done: int) -> None:
        seconds = time.monotonic() - self._began
        rate = done / max(seconds, 1e-3)
        size, whole, speed = map(rich.filesize.decimal, (done, self._size, int(rate)))
        left = time.strftime("%H:%M:%S", time.gmtime((self._size - done) / max(rate, 1)))
        self._bars.update(
            self._input, completed=done, shown=f"{size} of {whole}, {speed}/s, {left} left"
        )
        for row in counts.rows():
            if row.step not in self._steps:
                self._steps[row.step] = self._bars.add_task(f"  {row.step}", shown="")
            speed = f"{row.documents / max(row.seconds, 1e-3):,.0f}/s" if row.seconds else ""
            shown = f"{row.kept:,} of {row.documents:,} kept  {speed}"
            self._bars.update(
                self._steps[row.step], total=row.documents, completed=row.kept, shown=shown
            )


def _running(task: Task) -> Counts:
    try:
        return Counts.from_plain(json.loads(task.running.read_text()))
    except FileNotFoundError:
        return Counts()
