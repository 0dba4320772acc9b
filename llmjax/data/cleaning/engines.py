"""Engines that run tasks: processes on this machine, a Ray cluster, or Slurm jobs.

Ray and Slurm use datatrove's executors. On this machine a process pool runs the tasks instead:
datatrove's local executor keeps its own record of finished tasks, but parts record that themselves,
whatever engine cleaned them, so a run can resume with another engine.
"""

import concurrent.futures
import contextlib
import dataclasses
import functools
import importlib
import multiprocessing
import os
import shlex
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from multiprocessing import connection
from pathlib import Path
from typing import Any, Protocol

from llmjax.data.cleaning.extra import needs
from llmjax.data.cleaning.task import Task

_POLL_SECONDS = 0.5

Watch = Callable[[], None]
# Runs tasks in any order until all are done or one has failed, calling `Watch` now and then.
Run = Callable[[Sequence[Task], Watch], None]


class Engine(Protocol):
    """Where tasks run."""

    def start(self, logs: Path) -> contextlib.AbstractContextManager[Run]:
        """Prepares to run tasks.

        Args:
            logs: a folder for the logs of remote processes.
        """


@dataclasses.dataclass(frozen=True)
class Local:
    """Processes on this machine.

    Attributes:
        workers: number of processes; 1 runs in this process, and 0 uses one per core.
    """

    workers: int = 1

    @contextlib.contextmanager
    def start(self, logs: Path) -> Iterator[Run]:
        """As `Engine.start`; running tasks raises what a task raised.

        Raises:
            RuntimeError: a process was killed, for example because it ran out of memory.
        """
        del logs
        workers = self.workers or len(os.sched_getaffinity(0))
        # Not forked, because this process may have threads, such as those of jax.
        context = multiprocessing.get_context("spawn")
        with concurrent.futures.ProcessPoolExecutor(workers, context, _end_with_parent) as pool:
            yield functools.partial(_run_in, None if workers == 1 else pool)


def _run_in(pool: concurrent.futures.Executor | None, tasks: Sequence[Task], watch: Watch) -> None:
    """Runs tasks in a pool of processes, or in this process."""
    if pool is None or len(tasks) == 1:
        for task in tasks:
            task.run(watch)
            watch()
        return
    left = {pool.submit(task.run) for task in tasks}
    try:
        while left:
            done, left = concurrent.futures.wait(left, _POLL_SECONDS, "FIRST_EXCEPTION")
            watch()
            for future in done:
                future.result()
    except concurrent.futures.process.BrokenProcessPool as error:
        raise RuntimeError(
            "a process that cleaned text was killed, perhaps because it ran out of memory: use "
            "fewer workers. Finished parts are kept: run it again to go on."
        ) from error
    except BaseException:
        pool.shutdown(cancel_futures=True)
        raise


def _end_with_parent() -> None:
    """Ends this process when its parent ends, for whatever reason."""
    parent = multiprocessing.parent_process()
    assert parent is not None

    def wait() -> None:
        connection.wait([parent.sentinel])
        os._exit(1)

    threading.Thread(target=wait, daemon=True).start()


class Ranked:
    """Tasks as one callable, which datatrove's executors run on every machine."""

    def __init__(self, tasks: Sequence[Task]) -> None:
        self._tasks = tuple(tasks)

    def __call__(self, data: Any, rank: int, world_size: int) -> None:
        """Runs one of the tasks; takes datatrove's arguments."""
        del data, world_size
        self._tasks[rank].run()

    def __repr__(self) -> str:
        """Kept short, because it is at the start of every task's log."""
        return f"{len(self._tasks)} parts of text to clean"


@dataclasses.dataclass(frozen=True)
class Ray:
    """Tasks on a Ray cluster: that of RAY_ADDRESS, or one started on this machine.

    Attributes:
        workers: number of tasks to run at once; 0 for as many as the cluster has room for.
        memory_gb: memory reserved per task.
    """

    workers: int = 0
    memory_gb: float = 2.0

    @contextlib.contextmanager
    def start(self, logs: Path) -> Iterator[Run]:
        """As `Engine.start`."""
        with needs("ray"):
            import ray
        if not ray.is_initialized():
            ray.init(log_to_driver=False, runtime_env={"env_vars": {"PYTHONPATH": _search_path()}})
        make = _executor("ray", "RayPipelineExecutor")

        def run(tasks: Sequence[Task], watch: Watch) -> None:
            executor = make(
                [Ranked(tasks)],
                tasks=len(tasks),
                workers=self.workers or -1,
                mem_per_cpu_gb=self.memory_gb,
                logging_dir=str(logs),
                skip_completed=False,
            )
            with concurrent.futures.ThreadPoolExecutor(1) as pool:
                running = pool.submit(executor.run)
                while not concurrent.futures.wait([running], _POLL_SECONDS).done:
                    watch()
                running.result()

        yield run


@dataclasses.dataclass(frozen=True)
class Slurm:
    """Tasks as a Slurm job array, which this process waits for.

    Attributes:
        partition: partition of the cluster.
        time: time limit of a task, hours:minutes:seconds.
        workers: number of tasks to run at once; 0 for no limit.
        memory_gb: memory per task.
    """

    partition: str
    time: str = "10:00:00"
    workers: int = 0
    memory_gb: int = 2

    @contextlib.contextmanager
    def start(self, logs: Path) -> Iterator[Run]:
        """As `Engine.start`.

        Raises:
            FileNotFoundError: this machine cannot submit jobs.
        """
        if shutil.which("sbatch") is None:
            raise FileNotFoundError(
                "sbatch is not installed here: start it on a machine that submits Slurm jobs"
            )
        make = _executor("slurm", "SlurmPipelineExecutor")
        commands, modules = map(shlex.quote, (str(Path(sys.executable).parent), _search_path()))
        environment = f"export PYTHONPATH={modules} PATH={commands}:$PATH"

        def run(tasks: Sequence[Task], watch: Watch) -> None:
            executor = make(
                [Ranked(tasks)],
                tasks=len(tasks),
                time=self.time,
                partition=self.partition,
                workers=self.workers or -1,
                mem_per_cpu_gb=self.memory_gb,
                env_command=environment,
                job_name="llmjax-cleaning",
                qos="",
                logging_dir=str(logs),
                skip_completed=False,
            )
            executor.run()
            while any(task.counts() is None for task in tasks) and _queued(executor.job_id):
                watch()
                time.sleep(_POLL_SECONDS)

        yield run


def _queued(job: str) -> bool:
    """Whether a Slurm job is pending or running; True if the controller does not answer."""
    command = ["squeue", "--noheader", "--jobs", str(job)]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    # Slurm forgets a job some minutes after its end, and then calls its id invalid.
    forgotten = "Invalid job id" in result.stderr
    return bool(result.stdout.strip()) or (result.returncode != 0 and not forgotten)


def _search_path() -> str:
    """The module search path beyond the interpreter's own, for processes started elsewhere."""
    places = dict.fromkeys(Path(place).resolve() for place in sys.path if Path(place).is_dir())
    own = {Path(prefix).resolve() for prefix in (sys.prefix, sys.base_prefix)}
    return os.pathsep.join(str(place) for place in places if own.isdisjoint(place.parents))


def _executor(module: str, name: str) -> Any:
    with needs("datatrove"):
        from loguru import logger

        executor = getattr(importlib.import_module(f"datatrove.executor.{module}"), name)
    logger.remove()  # the progress display is enough; log files are still written
    return executor
