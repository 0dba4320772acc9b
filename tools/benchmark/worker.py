"""A process that runs one engine on one workload and computes only on command.

The parent writes a JSON line with the job, then commands; each reply is a JSON line:

    turn            {"seconds": wall time, "cores": CPU time over wall time, "loss": ...}
    matmul SIZE     {"gflops": rate of one matmul; on an accelerator a larger one, in bfloat16}
    finish          {"peak_memory_mb": ..., "peak_device_memory_mb": ..., "device": ...,
                     "versions": {...}, "parameters": ...}
"""

import importlib
import json
import os
import pathlib
import platform
import resource
import sys
import time
from collections.abc import Callable
from typing import Any, TextIO

ENGINES = ("llmjax", "torch", "torch-compile", "tunix")
ACCELERATED_SCALE = 4  # matmuls sized for a CPU are too short to time on a GPU


class Engine:
    """The programs of one engine.

    Attributes:
        turn: runs one unit of work.
        parameters: the model's number of parameters, or None.
    """

    def __init__(self, name: str, job: dict[str, Any]) -> None:
        ours = name == "llmjax"
        if ours:
            workloads = importlib.import_module("tools.benchmark.workloads")
            self._module = importlib.import_module("tools.benchmark.ours")
            workload = workloads.WORKLOADS[job["name"]]
            self.turn: Callable[[], float | None] = self._module.build(workload)
            self.parameters: int | None = workload.parameters
        elif name == "tunix":
            self._module = importlib.import_module("tools.benchmark.tunix_peers")
            self.turn, self.parameters = self._module.build(job)
        else:
            self._module = importlib.import_module("tools.benchmark.peers")
            self._module.torch.set_num_threads(job["threads"])
            self.turn, self.parameters = self._module.build(job, compiled=name == "torch-compile")

    def answer(self, command: str) -> dict[str, Any]:
        """Executes a command of the module's docstring and returns the reply."""
        if command == "turn":
            wall, processor = time.perf_counter(), time.process_time()
            loss = self.turn()
            seconds = time.perf_counter() - wall
            cores = (time.process_time() - processor) / seconds
            return {"seconds": seconds, "cores": cores, "loss": loss}
        if command.startswith("matmul "):
            return {"gflops": self._gflops(int(command.removeprefix("matmul ")))}
        return {
            "peak_memory_mb": peak_memory_mb(),
            "peak_device_memory_mb": self._module.peak_device_memory_mb(),
            "device": self._module.device(),
            "versions": {"python": platform.python_version()} | self._module.versions(),
            "parameters": self.parameters,
        }

    def _gflops(self, size: int) -> float:
        """The rate of a second matmul; the first may compile."""
        size *= ACCELERATED_SCALE if self._module.accelerated() else 1
        product = self._module.matmul(size)
        product()
        start = time.perf_counter()
        product()
        return 2 * size**3 / (time.perf_counter() - start) / 1e9


def peak_memory_mb() -> float:
    """This process's peak memory.

    Reads VmHWM on Linux, whose ru_maxrss starts at the parent's memory at the time of the fork.
    """
    status = pathlib.Path("/proc/self/status")
    if status.exists():
        fields = dict(line.split(":", 1) for line in status.read_text().splitlines())
        return int(fields["VmHWM"].split()[0]) / 1024
    scale = 1 << 20 if sys.platform == "darwin" else 1 << 10
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / scale


def serve(commands: TextIO, replies: TextIO) -> None:
    """Builds the job in the first line and executes the commands after it."""
    job = json.loads(commands.readline())
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[: job["threads"]])
    engine = Engine(job["engine"], job)
    for command in commands:
        replies.write(json.dumps(engine.answer(command.strip())) + "\n")
        replies.flush()


if __name__ == "__main__":
    # Libraries' prints go to stderr: stdout carries only replies.
    with os.fdopen(os.dup(1), "w") as replies:
        os.dup2(2, 1)
        serve(sys.stdin, replies)
