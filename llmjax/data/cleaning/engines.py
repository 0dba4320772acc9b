"""Where tasks run: in processes of this machine, on a Ray cluster, or as jobs of Slurm.

Ray and Slurm are datatrove's executors. On this machine a pool of processes does: datatrove's local
executor keeps lists of what is done of its own, while parts say that themselves, whatever engine
cleaned them; so a run may go on with another engine than it began with.
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
# Runs tasks, in any order, until they are done or have failed, and calls `Watch` now and then.
Run = Callable[[Sequence[Task], Watch], None]


class Engine(Protocol):
    """Where tasks run."""

    def start(self, logs: Path) -> contextlib.AbstractContextManager[Run]:
        """Gets ready what runs tasks.

        Args:
            logs: a folder for what processes elsewhere have to say.
        """


@dataclasses.dataclass(frozen=True)
class Local:
    """Processes of this machine.

    Attributes:
        workers: how many; 1 is this process itself, and 0 one for each core.
    """

    workers: int = 1

    @contextlib.contextmanager
    def start(self, logs: Path) -> Iterator[Run]:
        """As `Engine.start`; what runs tasks raises what a task raised.

        Raises:
            RuntimeError: a process was killed, for want of memory say.
        """
        del logs
        workers = self.workers or len(os.sched_getaffinity(0))
        # Not forked: this process may have threads, those of jax for one.
        context = multiprocessing.get_context("spawn")
        with concurrent.futures.ProcessPoolExecutor(workers, context, _end_with_parent) as pool:
            yield functools.partial(_run_in, None if workers == 1 else pool)


def _run_in(pool: concurrent.futures.Executor | None, tasks: Sequence[Task], watch: Watch) -> None:
    """Runs tasks in a pool of processes, or in this one."""
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
            "a process that cleaned text was killed, for want of memory perhaps: use fewer "
            "workers. What is done stays done: run it again to go on."
        ) from error
    except BaseException:
        pool.shutdown(cancel_futures=True)
        raise


def _end_with_parent() -> None:
    """Ends this process when its parent does, however that ends."""
    parent = multiprocessing.parent_process()
    assert parent is not None

    def wait() -> None:
        connection.wait([parent.sentinel])
        os._exit(1)

    threading.Thread(target=wait, daemon=True).start()


class Ranked:
    """Tasks as one callable, which is what datatrove's executors run on every machine."""

    def __init__(self, tasks: Sequence[Task]) -> None:
        self._tasks = tuple(tasks)

    def __call__(self, data: Any, rank: int, world_size: int) -> None:
        """Runs one of the tasks; datatrove's arguments."""
        del data, world_size
        self._tasks[rank].run()

    def __repr__(self) -> str:
        """As little as that: every task's log begins with it."""
        return f"{len(self._tasks)} parts of text to clean"


@dataclasses.dataclass(frozen=True)
class Ray:
    """Tasks on a Ray cluster: that of RAY_ADDRESS, or one that is started on this machine.

    Attributes:
        workers: how many tasks run at once; 0 for all that the cluster has room for.
        memory_gb: what a task reserves.
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
    """Tasks as an array of jobs, for which this process waits.

    Attributes:
        partition: of the cluster.
        time: the limit of a task, hours:minutes:seconds.
        workers: how many tasks run at once; 0 for no limit.
        memory_gb: of a task.
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
            raise FileNotFoundError("there is no sbatch here: start it where Slurm takes jobs")
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
    """Whether Slurm still queues or runs a job; True if its controller does not answer."""
    command = ["squeue", "--noheader", "--jobs", str(job)]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    # Slurm forgets a job some minutes after its end, and names it as invalid from then on.
    forgotten = "Invalid job id" in result.stderr
    return bool(result.stdout.strip()) or (result.returncode != 0 and not forgotten)


def _search_path() -> str:
    """Where modules are found beside the interpreter's, for processes that start elsewhere."""
    places = dict.fromkeys(Path(place).resolve() for place in sys.path if Path(place).is_dir())
    own = {Path(prefix).resolve() for prefix in (sys.prefix, sys.base_prefix)}
    return os.pathsep.join(str(place) for place in places if own.isdisjoint(place.parents))


def _executor(module: str, name: str) -> Any:
    with needs("datatrove"):
        from loguru import logger

        executor = getattr(importlib.import_module(f"datatrove.executor.{module}"), name)
    logger.remove()  # the progress display says it all; files of logs stay
    return executor
