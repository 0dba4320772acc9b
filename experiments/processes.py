"""Runs of several processes, such as one per host: how they find each other and take turns.

On Cloud TPU pods, under Slurm, Open MPI and in Kubernetes (an indexed job), the environment
describes the cluster:

    srun python -m experiments.pretrain --recipe=llama3_8b --cluster=auto

Elsewhere, tell each process:

    python -m experiments.pretrain ... --coordinator=host0:1234 --processes=2 --process=0

All other flags must be the same for every process, and all must see the same --run_dir.
"""

from collections.abc import Callable
from typing import Any, TypeVar

import jax
from absl import flags as absl_flags
from jax.experimental import multihost_utils

from experiments.flags import FlagError

CLUSTER = absl_flags.DEFINE_string(
    "cluster",
    None,
    "Environment that describes the processes: auto, or one of JAX: slurm, k8s, ompi.",
)
COORDINATOR = absl_flags.DEFINE_string(
    "coordinator", None, "HOST:PORT of process 0; also give --processes and --process."
)
PROCESSES = absl_flags.DEFINE_integer("processes", None, "Number of processes.")
PROCESS = absl_flags.DEFINE_integer("process", None, "Index of this process, from 0.")

Result = TypeVar("Result")


def join() -> None:
    """Joins this process with the others, if the flags describe several.

    Call it before anything else uses devices.

    Raises:
        FlagError: the flags conflict, or the environment does not describe a cluster.
    """
    count, number = PROCESSES.value, PROCESS.value
    if COORDINATOR.value is None:
        for name, value in (("processes", count), ("process", number)):
            if value is not None:
                raise FlagError(f"--{name}={value} needs --coordinator=HOST:PORT")
        if CLUSTER.value is not None:
            _initialize(cluster_detection_method=None if CLUSTER.value == "auto" else CLUSTER.value)
        return
    if CLUSTER.value is not None:
        raise FlagError(f"--cluster={CLUSTER.value} and --coordinator: give one of them")
    if count is None or number is None:
        raise FlagError(f"--coordinator={COORDINATOR.value} needs --processes and --process too")
    if not 0 <= number < count:
        raise FlagError(f"--process={number}: the processes are 0 to {count - 1}")
    _initialize(coordinator_address=COORDINATOR.value, num_processes=count, process_id=number)


def _initialize(**options: Any) -> None:
    try:
        jax.distributed.initialize(**options)
    except (RuntimeError, ValueError) as error:
        told = ", ".join(f"{name}={value}" for name, value in options.items() if value is not None)
        raise FlagError(f"cannot join the other processes ({told or 'auto'}): {error}") from error


def first(work: Callable[[], Result]) -> Result:
    """Runs `work` on process 0, then on all others, which find one-time work already done."""
    if jax.process_count() == 1:
        return work()
    if jax.process_index() == 0:
        result = work()
        multihost_utils.sync_global_devices("first")
        return result
    multihost_utils.sync_global_devices("first")
    return work()
