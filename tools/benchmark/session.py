"""Measures a workload with one process per engine, all alive but only one computing at a time."""

import contextlib
import dataclasses
import json
import math
import os
import pathlib
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from tools.benchmark.workloads import Workload

ROOT = pathlib.Path(__file__).parents[2]
MATMUL_SIZE = 2048
LOSS_TOLERANCE = 0.05  # relative
PAUSE_S = 0.05  # lets the previous engine's threads stop spinning


@dataclasses.dataclass(frozen=True)
class Result:
    """One engine's figures on one workload.

    Attributes:
        workload: the workload's name.
        engine: llmjax, torch (transformers, eager), torch-compile or tunix.
        tokens_per_s: tokens of a turn over step_s.
        step_s: median seconds of the turns after the first.
        turns_s: seconds of each of these turns.
        first_step_s: from starting the process to the end of the first turn, without caches.
        compile_s: seconds of the first turn beyond the median.
        loss: the first turn's loss, before any update, if any.
        peak_memory_mb: peak memory of the engine's process.
        peak_device_memory_mb: peak memory on the accelerator; None on a CPU.
        cores: median of CPU time over wall time, the number of cores used.
        matmul_gflops: best matmul rate of any engine in this run, in float32 or, on an
            accelerator, bfloat16.
        matmul_share: the workload's FLOPs over step_s, as a share of that rate.
        speedup: each peer's step_s over this one's.
        memory_share: this peak memory over each peer's; on an accelerator, of device memory.
        parameters: the model's number of parameters.
        threads: cores that the process may use.
        load_average: the machine's load average over the last minute.
        device: the device used.
        versions: versions of Python and the libraries.
    """

    workload: str
    engine: str
    tokens_per_s: float
    step_s: float
    turns_s: tuple[float, ...]
    first_step_s: float
    compile_s: float
    loss: float | None
    peak_memory_mb: float
    peak_device_memory_mb: float | None
    cores: float
    matmul_gflops: float
    matmul_share: float | None
    speedup: dict[str, float]
    memory_share: dict[str, float]
    parameters: int | None
    threads: int
    load_average: float
    device: str
    versions: dict[str, str]


class Worker:
    """The parent's handle of a worker process, which ends with the `with` block.

    Attributes:
        engine: the engine's name.
        first: seconds of the first turn.
        loss: the first turn's loss, or None.
        first_step_s: from starting the process to the end of that turn.
        turns: the replies to the timed turns.
        gflops: matmul rates measured after each timed turn.
    """

    def __init__(self, engine: str, workload: Workload, threads: int, cache: str) -> None:
        self.engine, self._start = engine, time.perf_counter()
        inherited = {n: v for n, v in os.environ.items() if n != "JAX_COMPILATION_CACHE_DIR"}
        own = {
            "OMP_NUM_THREADS": str(threads),
            "TORCHINDUCTOR_CACHE_DIR": cache,
            # By default, jax preallocates most of a GPU and leaves peers too little.
            "XLA_PYTHON_CLIENT_PREALLOCATE": "false",
        }
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tools.benchmark.worker"],
            cwd=ROOT,
            env=inherited | own,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        self._write(json.dumps(workload.job() | {"engine": engine, "threads": threads}))
        self.first = self.first_step_s = 0.0
        self.loss: float | None = None
        self.turns: list[dict[str, Any]] = []
        self.gflops: list[float] = []

    def __enter__(self) -> "Worker":
        return self

    def __exit__(self, *_: object) -> None:
        for stream in (self._process.stdin, self._process.stdout):
            if stream is not None:
                with contextlib.suppress(BrokenPipeError):
                    stream.close()
        try:
            self._process.wait(timeout=10)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()

    def ask(self, command: str) -> dict[str, Any]:
        """Sends a command and returns the reply; RuntimeError if the process ended instead."""
        self._write(command)
        assert self._process.stdout is not None
        reply = self._process.stdout.readline()
        if not reply:
            raise RuntimeError(
                f"the {self.engine} process ended with status {self._process.wait()} at "
                f"{command.split()[0]!r}; see its output above"
            )
        return json.loads(reply)

    def start(self) -> None:
        """Waits for the first turn, which compiles."""
        reply = self.ask("turn")
        self.first, self.loss = reply["seconds"], reply["loss"]
        self.first_step_s = time.perf_counter() - self._start

    def round(self) -> float:
        """Runs a timed turn and a matmul; returns the turn's seconds."""
        time.sleep(PAUSE_S)
        self.turns.append(self.ask("turn"))
        self.gflops.append(self.ask(f"matmul {MATMUL_SIZE}")["gflops"])
        return self.turns[-1]["seconds"]

    def _write(self, line: str) -> None:
        assert self._process.stdin is not None
        with contextlib.suppress(BrokenPipeError):  # the missing reply is reported instead
            self._process.stdin.write(line + "\n")
            self._process.stdin.flush()


def measure(
    workload: Workload,
    engines: Sequence[str],
    *,
    rounds: int,
    threads: int,
    say: Callable[[str], None],
) -> list[Result]:
    """Measures the engines in turns, so that disturbances of the machine affect all of them.

    Args:
        workload: what to time.
        engines: llmjax and its peers.
        rounds: timed turns of each engine, after one that compiles.
        threads: cores that each engine may use.
        say: receives progress messages.

    Raises:
        RuntimeError: a process failed, or a peer's work differs: its model has another size, its
            first loss differs, or it runs on another kind of device.
    """
    load = os.getloadavg()[0]
    with contextlib.ExitStack() as stack:
        cache = stack.enter_context(tempfile.TemporaryDirectory())
        workers = []
        for engine in engines:
            say(f"{workload.name}: {engine} starts")
            worker = stack.enter_context(Worker(engine, workload, threads, cache))
            worker.start()
            say(f"{workload.name}: {engine} finished its first step in {worker.first_step_s:.1f} s")
            workers.append(worker)
        for number in range(rounds):
            # The order alternates, so that no engine always runs after the same other.
            order = workers if number % 2 == 0 else workers[::-1]
            times = "  ".join(f"{worker.engine} {worker.round():.3f} s" for worker in order)
            say(f"{workload.name}: round {number + 1} of {rounds}: {times}")
        return _results(workload, workers, threads, load)


def _results(
    workload: Workload, workers: Sequence[Worker], threads: int, load: float
) -> list[Result]:
    finals = {worker.engine: worker.ask("finish") for worker in workers}
    steps = {
        worker.engine: statistics.median(turn["seconds"] for turn in worker.turns)
        for worker in workers
    }
    _check_same_work(workload, workers, finals)
    memory = {
        engine: final["peak_device_memory_mb"] or final["peak_memory_mb"]
        for engine, final in finals.items()
    }
    gflops = max(rate for worker in workers for rate in worker.gflops)
    results = []
    for worker in workers:
        engine, final = worker.engine, finals[worker.engine]
        step = steps[engine]
        others = [name for name in steps if name != engine]
        share = workload.flops / step / gflops / 1e9 if workload.flops else None
        results.append(
            Result(
                workload=workload.name,
                engine=engine,
                tokens_per_s=workload.tokens / step,
                step_s=step,
                turns_s=tuple(turn["seconds"] for turn in worker.turns),
                first_step_s=worker.first_step_s,
                compile_s=max(0.0, worker.first - step),
                loss=worker.loss,
                cores=statistics.median(turn["cores"] for turn in worker.turns),
                matmul_gflops=gflops,
                matmul_share=share,
                speedup={name: steps[name] / step for name in others},
                memory_share={name: memory[engine] / memory[name] for name in others},
                threads=threads,
                load_average=load,
                **final,
            )
        )
    return results


def _check_same_work(
    workload: Workload, workers: Sequence[Worker], finals: Mapping[str, dict[str, Any]]
) -> None:
    """Raises RuntimeError unless all engines have the same model size, loss and kind of device."""
    first = workers[0]
    on = finals[first.engine]
    for worker in workers:
        final, name = finals[worker.engine], f"{workload.name}: the model of {worker.engine}"
        if final["parameters"] != workload.parameters:
            raise RuntimeError(
                f"{name} has {final['parameters']} parameters, and not {workload.parameters}"
            )
        # Untrained models predict almost uniformly, so their losses hardly depend on the seed.
        if (
            worker.loss is not None
            and first.loss is not None
            and not math.isclose(worker.loss, first.loss, rel_tol=LOSS_TOLERANCE)
        ):
            raise RuntimeError(
                f"{name} begins with a loss of {worker.loss:.3f}, and not {first.loss:.3f}"
            )
        if (final["peak_device_memory_mb"] is None) != (on["peak_device_memory_mb"] is None):
            raise RuntimeError(
                f"{name} is on {final['device']}, and not on {on['device']}: install both "
                "libraries for the same device"
            )
