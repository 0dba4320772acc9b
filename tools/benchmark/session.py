"""Measures a workload: one process for each engine, all alive together, one computing at a time."""

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
PAUSE_S = 0.05  # lets the threads of the engine before stop spinning


@dataclasses.dataclass(frozen=True)
class Result:
    """One engine's figures on one workload.

    Attributes:
        workload: its name.
        engine: llmjax, torch (transformers, eager) or torch-compile.
        tokens_per_s: tokens of a turn over step_s.
        step_s: median of the turns after the first.
        turns_s: all of these.
        first_step_s: from starting the process to the end of the first turn, nothing cached.
        compile_s: what the first turn took longer than the median.
        loss: of the first turn, before any update; None where there is none.
        peak_memory_mb: of the engine's process.
        peak_device_memory_mb: of what it held on an accelerator; None on a processor.
        cores: median processor time over wall time: how many cores it was given.
        matmul_gflops: best rate of a product that any engine reached in this run: of float32, on
            an accelerator of bfloat16.
        matmul_share: the workload's operations over step_s, as a share of that rate.
        speedup: each peer's step_s over this one's.
        memory_share: this peak memory over each peer's, on an accelerator of that.
        parameters: of the model.
        threads: cores that the process may use.
        load_average: of the machine, over the minute before.
        device: what it computed on.
        versions: of Python and the libraries.
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
    """The parent's side of a worker process, which ends with the `with` block.

    Attributes:
        engine: its name.
        first: seconds of the first turn.
        loss: of the first turn, or None.
        first_step_s: from starting the process to the end of that turn.
        turns: the replies to the timed turns.
        gflops: rates of the products of matrices beside them.
    """

    def __init__(self, engine: str, workload: Workload, threads: int, cache: str) -> None:
        self.engine, self._start = engine, time.perf_counter()
        inherited = {n: v for n, v in os.environ.items() if n != "JAX_COMPILATION_CACHE_DIR"}
        own = {
            "OMP_NUM_THREADS": str(threads),
            "TORCHINDUCTOR_CACHE_DIR": cache,
            # jax would take most of a GPU at its start, and leave peers too little.
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
        """The reply to a command. RuntimeError if the process ended instead."""
        self._write(command)
        assert self._process.stdout is not None
        reply = self._process.stdout.readline()
        if not reply:
            raise RuntimeError(
                f"the {self.engine} process ended with status {self._process.wait()} at "
                f"{command.split()[0]!r}; what it wrote stands above"
            )
        return json.loads(reply)

    def start(self) -> None:
        """Waits for the first turn, which compiles."""
        reply = self.ask("turn")
        self.first, self.loss = reply["seconds"], reply["loss"]
        self.first_step_s = time.perf_counter() - self._start

    def round(self) -> float:
        """One timed turn, and a product of matrices beside it; the turn's seconds."""
        time.sleep(PAUSE_S)
        self.turns.append(self.ask("turn"))
        self.gflops.append(self.ask(f"matmul {MATMUL_SIZE}")["gflops"])
        return self.turns[-1]["seconds"]

    def _write(self, line: str) -> None:
        assert self._process.stdin is not None
        with contextlib.suppress(BrokenPipeError):  # the missing reply says so better
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
    """The engines' figures, taken in turns: what disturbs the machine disturbs all of them.

    Args:
        workload: what to time.
        engines: llmjax, and peers.
        rounds: timed turns of each engine, after one that compiles.
        threads: cores that each may use.
        say: is told what happens.

    Raises:
        RuntimeError: a process failed, or a peer does other work: its model has another size, its
            first loss is another, or it is on another kind of device.
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
            # Every other round goes backwards, so that none always comes after the same other.
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
    """Whoever has another model, another loss or another device is no peer."""
    first = workers[0]
    on = finals[first.engine]
    for worker in workers:
        final, name = finals[worker.engine], f"{workload.name}: the model of {worker.engine}"
        if final["parameters"] != workload.parameters:
            raise RuntimeError(
                f"{name} has {final['parameters']} parameters, and not {workload.parameters}"
            )
        # Untrained models guess about evenly, so their losses hardly depend on what was drawn.
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
