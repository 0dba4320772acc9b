"""The live display of a run: a block of lines on a terminal, plain lines elsewhere."""

import collections
import math
import time
from typing import Self

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from llmjax.train.metrics import Record

_BARS = "▁▂▃▄▅▆▇█"
_SMOOTHING = 0.95
_SAMPLES = 3
# Metrics shown for evaluations, and for an iteration's rollouts, if present.
_EVALUATION = (
    ("validation_loss", "loss {:.3f}"),
    ("perplexity", "perplexity {:,.2f}"),
    ("bits_per_byte", "{:.3f} bits per byte"),
    ("pseudo_perplexity", "pseudo-perplexity {:,.2f}"),
    ("accuracy", "accuracy {:.2%}"),
    ("macro_f1", "macro F1 {:.3f}"),
    ("validation_accuracy", "{:.2%} of comparisons right"),
    ("validation_reward", "reward {:.3f}"),
    ("validation_gold", "gold reward {:.3f}"),
    ("validation_answer_tokens", "{:.0f} tokens per answer"),
)
_ROLLOUTS = (
    ("reward", "reward {:.3f}"),
    ("kl_per_response", "{:.2f} nats from the reference"),
    ("answer_tokens", "{:.0f} tokens per answer"),
    ("ended", "{:.0%} ended"),
)


class Progress:
    """Shows records (it is a `metrics.Writer`) and samples during a run.

    On a terminal, it redraws in place: step, remaining time, smoothed loss with a sparkline,
    learning rate, speed, and the last evaluation, rollouts and samples. Elsewhere, it prints a
    plain line every `interval` seconds, and one for each evaluation and sample, without control
    codes. Until the first record it says that the step is compiling.

    Args:
        steps: the number of the last step.
        start: the step after which the run starts.
        title: a short title.
        interval: seconds between plain lines.
        console: the output; by default stdout.
    """

    def __init__(
        self,
        steps: int,
        *,
        start: int = 0,
        title: str = "train",
        interval: float = 5.0,
        console: Console | None = None,
    ) -> None:
        self._steps, self._start, self._title, self._interval = steps, start, title, interval
        self._console = console or Console()
        self._live = Live(self, console=self._console, refresh_per_second=4)
        self._plain = not self._console.is_terminal
        self._record: Record = {"step": start}
        self._evaluation: Record = {}
        self._rollouts: Record = {}
        self._samples: collections.deque[tuple[str, str]] = collections.deque(maxlen=_SAMPLES)
        self._loss = _Smoothed()
        self._began = self._printed = time.monotonic()
        self._compiled: tuple[int, float] | None = None  # the first step and when it was complete

    def __enter__(self) -> Self:
        self._began = time.monotonic()
        if self._plain:
            self._line(f"{self._title}: compiling the step…")
        else:
            self._live.start()
        return self

    def __exit__(self, *_: object) -> None:
        if not self._plain:
            self._live.stop()

    def write(self, record: Record) -> None:
        """Shows a record of training, evaluation or rollouts."""
        now = time.monotonic()
        if "loss" not in record and any(name in record for name, _ in _EVALUATION):
            self._evaluation = record
            if self._plain:
                self._line(self._evaluation_text())
            return
        if "reward" in record:
            self._rollouts = record
            if self._plain:
                self._line(self._rollouts_text())
            return
        self._record = record
        self._loss.add(record.get("loss", math.nan))
        if self._compiled is None:
            self._compiled = (record["step"], now)
            due = True
        else:
            due = now - self._printed >= self._interval or record["step"] == self._steps
        if self._plain and due:
            self._printed = now
            self._line(f"step {self._step_text()}  {self._figures()}  {self._times()}")

    def sample(self, prompt: str, continuation: str) -> None:
        """Shows a text that the model wrote."""
        self._samples.append((_printable(prompt), _printable(continuation)))
        if self._plain:
            self._line("sample: {} → {}".format(*self._samples[-1]))

    def __rich__(self) -> Group:
        done = self._record["step"]
        head = Text.assemble(
            (self._title, "bold"), f"  {self._step_text()}  ", (self._times(), "dim")
        )
        if self._compiled is None:
            return Group(head, Text("compiling the step…", "yellow"))
        bars = Table.grid(padding=(0, 2))
        width = max(8, min(self._console.width - _Smoothed.POINTS - 4, 60))
        bar = ProgressBar(total=max(self._steps, 1), completed=done, width=width)
        bars.add_row(bar, Text(self._loss.sparkline(), "cyan"))
        parts: list[RenderableType] = [head, bars, Text(self._figures())]
        if self._rollouts:
            parts.append(Text(self._rollouts_text(), "cyan"))
        if self._evaluation:
            parts.append(Text(self._evaluation_text(), "green"))
        for prompt, continuation in self._samples:
            text = Text(f"{prompt} ", "dim", no_wrap=True, overflow="ellipsis")
            parts.append(text.append(continuation, "not dim"))
        return Group(*parts)

    def _step_text(self) -> str:
        return f"{self._record['step']:,}/{self._steps:,}"

    def _figures(self) -> str:
        record = self._record
        parts = [f"loss {self._loss.value:.3f}"]
        if "learning_rate" in record:
            parts.append(f"learning rate {record['learning_rate']:.2e}")
        if "tokens_per_s" in record:
            parts.append(f"{record['tokens_per_s']:,.0f} tokens/s")
        if "mfu" in record:
            parts.append(f"MFU {record['mfu']:.0%}")
        if record.get("skipped_total"):
            parts.append(f"{record['skipped_total']:,.0f} skipped")
        return "  ".join(parts)

    def _evaluation_text(self) -> str:
        record = self._evaluation
        parts = [text.format(record[name]) for name, text in _EVALUATION if name in record]
        if "discriminator_accuracy" in record:
            parts.append(f"generator {record['generator_loss']:.3f}")
            parts.append(f"discriminator {record['discriminator_loss']:.4f}")
            right, originals = record["discriminator_accuracy"], 1 - record["replaced"]
            parts.append(f"{right:.2%} right ({originals:.2%} are originals)")
        return f"validation at step {record['step']:,}: {'  '.join(parts)}"

    def _rollouts_text(self) -> str:
        record = self._rollouts
        parts = [text.format(record[name]) for name, text in _ROLLOUTS if name in record]
        return f"rollouts at step {record['step']:,}: {'  '.join(parts)}"

    def _times(self) -> str:
        """Elapsed and remaining time, from the mean of all steps except the first."""
        now = time.monotonic()
        text = f"{_clock(now - self._began)} elapsed"
        done = self._record["step"]
        if self._compiled is not None and done > self._compiled[0]:
            first, at = self._compiled
            left = (now - at) / (done - first) * (self._steps - done)
            text += f"  {_clock(left)} left"
        return text

    def _line(self, text: str) -> None:
        print(text, file=self._console.file, flush=True)


class _Smoothed:
    """A running mean of the loss, and its history in a bounded number of points."""

    POINTS = 32

    def __init__(self) -> None:
        self._sum = self._weight = 0.0
        self._points: list[float] = []
        self._bucket: list[float] = []
        self._stride = 1

    def add(self, loss: float) -> None:
        if not math.isfinite(loss):
            return
        self._sum = _SMOOTHING * self._sum + loss
        self._weight = _SMOOTHING * self._weight + 1
        self._bucket.append(loss)
        if len(self._bucket) == self._stride:
            self._points.append(sum(self._bucket) / self._stride)
            self._bucket = []
        if len(self._points) == 2 * self.POINTS:
            pairs = zip(self._points[::2], self._points[1::2], strict=True)
            self._points = [(a + b) / 2 for a, b in pairs]
            self._stride *= 2

    @property
    def value(self) -> float:
        return self._sum / self._weight if self._weight else math.nan

    def sparkline(self) -> str:
        points = self._points[-self.POINTS :] if self._stride == 1 else self._points
        if not points:
            return ""
        low, high = min(points), max(points)
        scale = (len(_BARS) - 1) / (high - low) if high > low else 0.0
        return "".join(_BARS[round((point - low) * scale)] for point in points)


def _printable(text: str) -> str:
    """Makes generated text a single line without control characters."""
    return "".join(c if c.isprintable() else " " if c.isspace() else "�" for c in text)


def _clock(seconds: float) -> str:
    minutes, seconds = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{seconds:02}" if hours else f"{minutes:02}:{seconds:02}"
