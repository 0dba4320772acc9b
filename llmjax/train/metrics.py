"""Metrics: from ticks to records, and from records to files.

A record is a flat dict with a `step`. Training records have step, loss, tokens_per_s, seconds and
the step's other metrics (learning_rate, grad_norm, …, and mfu if known); evaluation records have
step, validation_loss (or validation_reward) and the other metrics of the objective's evaluation,
such as perplexity and bits_per_byte of next tokens. The hook `Recorder` makes records and passes
them to its writers: `JsonlWriter`, `TensorBoardWriter`, `WandbWriter`, `progress.Progress`.
"""

import importlib.util
import json
import math
import os
import pathlib
import sys
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Protocol, Self

from llmjax.train.loop import Tick

Record = Mapping[str, Any]

# Fields that differ between two runs that are otherwise bitwise identical.
TIMINGS = frozenset(
    {
        "seconds",
        "data_seconds",
        "compile_seconds",
        "tokens_per_s",
        "tokens_per_s_per_chip",
        "mfu",
        "goodput",
        "memory_bytes",
        "memory_peak_share",
        "host_seconds_max",
        "host_seconds_median",
        "slowest_process",
    }
)


class Writer(Protocol):
    """A destination of records."""

    def write(self, record: Record) -> None:
        """Writes one record."""
        ...


class Throughput:
    """Tokens per second and the share of the hardware's peak (MFU), excluding compile time.

    By default tokens are the step's targets, without padding.

    Args:
        flops_per_token: floating-point operations of a training step per token, or None.
        peak_flops: peak FLOP/s of all devices together, or None if unknown.
        counted: the metric with the step's number of tokens; "inputs", the tokens read, if only
            some of them are targets.
        chips: number of devices, to report the rate per device; None does not report it.
    """

    def __init__(
        self,
        flops_per_token: float | None = None,
        peak_flops: float | None = None,
        counted: str = "tokens",
        chips: int | None = None,
    ) -> None:
        self._flops_per_token, self._peak_flops = flops_per_token, peak_flops
        self._counted, self._chips = counted, chips
        self._first: int | None = None
        self._tokens = self._seconds = 0.0

    def measure(self, tick: Tick) -> dict[str, float]:
        """This step's tokens_per_s and, if known, that per chip and the mfu."""
        tokens = tick.metrics.get(self._counted, 0.0)
        if self._first is None:
            self._first = tick.step  # compiles
        else:
            self._tokens += tokens
            self._seconds += tick.seconds
        rate = tokens / max(tick.seconds, 1e-9)
        found = {"tokens_per_s": rate}
        if self._chips:
            found["tokens_per_s_per_chip"] = rate / self._chips
        if (mfu := self.mfu(rate)) is not None:
            found["mfu"] = mfu
        return found

    @property
    def tokens_per_s(self) -> float | None:
        """The mean over all steps except the first, or None before the second."""
        return self._tokens / self._seconds if self._seconds else None

    def mfu(self, tokens_per_s: float) -> float | None:
        """Model FLOPs utilization at a rate, in [0, 1], or None if it cannot be computed."""
        if self._flops_per_token is None or not self._peak_flops:
            return None
        return tokens_per_s * self._flops_per_token / self._peak_flops


class Recorder:
    """The hook that turns every tick into a record for its writers.

    Args:
        writers: destinations of the records.
        throughput: measures every step.
        every: only the first step and multiples of `every` are written.
        gauges: called at every step to add numbers to its record; see `telemetry`.
    """

    def __init__(
        self,
        writers: Sequence[Writer],
        throughput: Throughput | None = None,
        every: int = 1,
        gauges: Sequence[Callable[[Tick], Mapping[str, float]]] = (),
    ) -> None:
        if every < 1:
            raise ValueError(f"every={every}: must be at least 1")
        self.throughput = throughput or Throughput()
        self._writers, self._every, self._begun = writers, every, False
        self._gauges = gauges

    def __call__(self, tick: Tick) -> None:
        """Records a completed step."""
        measured = self.throughput.measure(tick)
        for gauge in self._gauges:
            measured |= gauge(tick)
        if self._begun and tick.step % self._every:
            return
        self._begun = True
        times = {"seconds": tick.seconds, "data_seconds": tick.data_seconds}
        self.write({"step": tick.step, **tick.metrics, **measured, **times})

    def write(self, record: Record) -> None:
        """Passes a record, such as an evaluation's, to all writers."""
        for writer in self._writers:
            writer.write(record)


class JsonlWriter:
    """Writes one JSON object per line, and flushes each.

    An existing file is continued: records of steps after `step` are dropped, as the resumed run
    repeats these steps, and so is a last line truncated by a kill. A new run, which repeats
    everything, begins an empty file. NaN and infinities, which JSON lacks, are written as null.

    Args:
        path: the file; its folder is created if missing.
        step: the step after which the run starts, 0 for a new run.
    """

    def __init__(self, path: str | os.PathLike[str], *, step: int = 0) -> None:
        path = pathlib.Path(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.exists():
            before = read_jsonl(path) if step else []
            kept = [record for record in before if record.get("step", 0) <= step]
            rest = path.with_name(path.name + ".tmp")
            rest.write_text("".join(json.dumps(record) + "\n" for record in kept), "utf-8")
            rest.replace(path)
        self._file = path.open("a", encoding="utf-8")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def write(self, record: Record) -> None:
        """Appends one line."""
        plain = {
            name: None if isinstance(value, float) and not math.isfinite(value) else value
            for name, value in record.items()
        }
        self._file.write(json.dumps(plain, allow_nan=False) + "\n")
        self._file.flush()

    def close(self) -> None:
        """Closes the file."""
        self._file.close()


class TensorBoardWriter:
    """Writes the numbers of every record as TensorBoard scalars, train/… and validation/….

    Args:
        directory: the log folder.
        step: the step after which the run starts; TensorBoard hides what was logged after it.
    """

    def __init__(self, directory: str | os.PathLike[str], *, step: int = 0) -> None:
        import tensorboardX  # slow to import, and only needed here

        purged = step + 1 if step else 0  # a new run may write before its first step too
        self._writer = tensorboardX.SummaryWriter(os.fspath(directory), purge_step=purged)

    def write(self, record: Record) -> None:
        """Logs one record."""
        for tag, value in _scalars(record):
            self._writer.add_scalar(tag, value, record["step"])

    def close(self) -> None:
        """Flushes and closes the file."""
        self._writer.close()


def require_wandb() -> None:
    """Raises ModuleNotFoundError, naming the extra, if Weights & Biases is not installed."""
    if "wandb" not in sys.modules and importlib.util.find_spec("wandb") is None:
        raise ModuleNotFoundError("Weights & Biases is not installed: pip install 'llmjax[wandb]'")


class WandbWriter:
    """Logs the numbers of every record to Weights & Biases, under the same names as TensorBoard.

    A resumed run continues under its name. Without a network, WANDB_MODE=offline keeps everything
    in the folder.

    Args:
        project: project in Weights & Biases.
        name: the run's name, unique in its project.
        directory: folder for its files.
        config: shown as the run's settings.

    Raises:
        ModuleNotFoundError: the package is not installed.
    """

    def __init__(
        self,
        project: str,
        name: str,
        directory: str | os.PathLike[str],
        config: Mapping[str, Any] | None = None,
    ) -> None:
        require_wandb()
        import wandb  # slow to import, and only needed here

        plain = dict(config or {})
        self._run = wandb.init(
            project=project, id=name, name=name, dir=directory, config=plain, resume="allow"
        )

    def write(self, record: Record) -> None:
        """Logs one record."""
        self._run.log(dict(_scalars(record)), step=record["step"])

    def close(self) -> None:
        """Sends buffered records."""
        self._run.finish()


def is_evaluation(record: Record) -> bool:
    """Whether a record is of an evaluation; training steps may have metrics of the same names."""
    return any(name.startswith("validation_") for name in record)


def _scalars(record: Record) -> Iterator[tuple[str, float]]:
    """(tag, number) of all numbers of a record: train/… or validation/…."""
    group = "validation" if is_evaluation(record) else "train"
    for name, value in record.items():
        if name != "step" and isinstance(value, int | float):
            yield f"{group}/{name.removeprefix('validation_')}", value


def read_jsonl(path: str | os.PathLike[str]) -> list[dict[str, Any]]:
    """The records of a file, without a truncated last line.

    Any other line that is not a JSON object is left out with a warning that names file and line.
    """
    return [record for _, record in numbered_jsonl(path)]


def numbered_jsonl(path: str | os.PathLike[str]) -> list[tuple[int, dict[str, Any]]]:
    """The records of a file as in `read_jsonl`, each with the number of its line, from 1."""
    lines = pathlib.Path(path).read_text("utf-8", errors="replace").split("\n")
    records = []
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            record = json.loads(line)
        except ValueError:
            record = None
        if isinstance(record, dict):
            records.append((number, record))
        elif number < len(lines):
            message = f"{path}:{number}: left out, not a JSON object: {line[:60]}"
            warnings.warn(message, stacklevel=2)
    return records
