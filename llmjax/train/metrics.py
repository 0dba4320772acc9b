"""From ticks to records, and from records to files.

A record is one flat dict with a `step`. Training records have step, loss, tokens_per_s, seconds and
what else the step measures (learning_rate, grad_norm, …, and mfu where it is known); evaluation
records have step, validation_loss and what else the objective's evaluation says: perplexity and
bits_per_byte of next tokens. `Recorder` is the hook that makes
them and hands them to its writers: `JsonlWriter`, `TensorBoardWriter`, `WandbWriter`,
`progress.Progress`.
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

# What differs between two runs that are otherwise the same, byte for byte.
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
    """Where records go."""

    def write(self, record: Record) -> None:
        """Takes one record."""
        ...


class Throughput:
    """Tokens per second and the share of the hardware's peak (MFU), compile time left out.

    Tokens are by default the targets that the step counted; padding earns nothing.

    Args:
        flops_per_token: floating-point operations of a training step for one token, or None.
        peak_flops: what all the devices together can do in a second, or None when unknown.
        counted: the metric of a step that says how many tokens it had: "inputs", those that are
            read, where only some of them are targets.
        chips: over how many devices, to tell the rate of one; None tells none.
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
        """This step's tokens_per_s, that of a chip, and its mfu, where these are known."""
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
        """The mean over all steps but the first, or None before the second."""
        return self._tokens / self._seconds if self._seconds else None

    def mfu(self, tokens_per_s: float) -> float | None:
        """Model FLOPs utilisation at a rate, in 0…1, or None when a figure for it is missing."""
        if self._flops_per_token is None or not self._peak_flops:
            return None
        return tokens_per_s * self._flops_per_token / self._peak_flops


class Recorder:
    """The hook that turns every tick into a record for its writers.

    Args:
        writers: where the records go.
        throughput: measures every step.
        every: only steps that are multiples of it are written, and the first.
        gauges: called for every step, add their numbers to its record; see `telemetry`.
    """

    def __init__(
        self,
        writers: Sequence[Writer],
        throughput: Throughput | None = None,
        every: int = 1,
        gauges: Sequence[Callable[[Tick], Mapping[str, float]]] = (),
    ) -> None:
        if every < 1:
            raise ValueError(f"every={every}: a positive number of steps")
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
        """Hands a record, such as an evaluation's, to all writers."""
        for writer in self._writers:
            writer.write(record)


class JsonlWriter:
    """One JSON object a line, flushed as it is written.

    A file that is there is continued: records of steps after `step` are dropped (the resumed run
    does these steps again, so each is there once), and so is a last line that a kill cut short.
    Numbers that JSON cannot hold (NaN, infinities) are written as null.

    Args:
        path: the file; its folder is made when missing.
        step: the step that the run starts after, 0 for a fresh run.
    """

    def __init__(self, path: str | os.PathLike[str], *, step: int = 0) -> None:
        path = pathlib.Path(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.exists():
            kept = [record for record in read_jsonl(path) if record.get("step", 0) <= step]
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
    """The numbers of every record as TensorBoard scalars, train/… and validation/….

    Args:
        directory: the log folder.
        step: the step that the run starts after; TensorBoard hides what was logged after it.
    """

    def __init__(self, directory: str | os.PathLike[str], *, step: int = 0) -> None:
        import tensorboardX  # slow to import, and only wanted here

        self._writer = tensorboardX.SummaryWriter(os.fspath(directory), purge_step=step + 1)

    def write(self, record: Record) -> None:
        """Logs one record."""
        for tag, value in _scalars(record):
            self._writer.add_scalar(tag, value, record["step"])

    def close(self) -> None:
        """Writes what is buffered and closes the file."""
        self._writer.close()


def require_wandb() -> None:
    """Raises ModuleNotFoundError, naming the extra, when Weights & Biases is not installed."""
    if "wandb" not in sys.modules and importlib.util.find_spec("wandb") is None:
        raise ModuleNotFoundError("Weights & Biases is not installed: pip install 'llmjax[wandb]'")


class WandbWriter:
    """The numbers of every record in Weights & Biases, under the names that TensorBoard has.

    A run that is resumed goes on under its own name there. Where no network is, WANDB_MODE=offline
    keeps all in the folder.

    Args:
        project: of Weights & Biases.
        name: the run's name; runs of a project have different ones.
        directory: where its files are kept.
        config: what is shown as the run's settings.

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
        import wandb  # slow to import, and only wanted here

        plain = dict(config or {})
        self._run = wandb.init(
            project=project, id=name, name=name, dir=directory, config=plain, resume="allow"
        )

    def write(self, record: Record) -> None:
        """Logs one record."""
        self._run.log(dict(_scalars(record)), step=record["step"])

    def close(self) -> None:
        """Sends what is buffered."""
        self._run.finish()


def _scalars(record: Record) -> Iterator[tuple[str, float]]:
    """(tag, number) of all numbers of a record: train/… or validation/…."""
    group = "validation" if "validation_loss" in record else "train"
    for name, value in record.items():
        if name != "step" and isinstance(value, int | float):
            yield f"{group}/{name.removeprefix('validation_')}", value


def read_jsonl(path: str | os.PathLike[str]) -> list[dict[str, Any]]:
    """The records of a file, without a last line that was cut short.

    Any other line that is no JSON object is left out with a warning naming file and line.
    """
    lines = pathlib.Path(path).read_text("utf-8", errors="replace").split("\n")
    records = []
    for number, line in enumerate(lines, start=1):
        try:
            record = json.loads(line) if line else None
        except ValueError:
            record = line
        if isinstance(record, dict):
            records.append(record)
        elif record is not None and number < len(lines):
            message = f"{path}:{number}: left out, not a JSON object: {line[:60]}"
            warnings.warn(message, stacklevel=2)
    return records
