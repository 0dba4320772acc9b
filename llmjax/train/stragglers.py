"""Finding the process that keeps the others waiting.

A step that all devices share ends in all processes at once, so its time does not show who was late.
What differs is how long each process takes to dispatch the next step: loading a batch, hooks, a
machine that is busy with something else. These times are compared on the devices, by a tiny program
after the step, so that no process waits for the result.
"""

import functools
import time

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec


class Stragglers:
    """Measures this process between steps, and compares all processes, if there are several."""

    def __init__(self) -> None:
        self._since: float | None = None

    def begin(self) -> None:
        """Starts the clock: the host has the metrics of a step and prepares the next one."""
        self._since = time.perf_counter()

    def compare(self) -> dict[str, jax.Array]:
        """Call it after dispatching a step; returns metrics as device scalars.

        host_seconds_max and host_seconds_median are over the processes, slowest_process is the
        index of the slowest.
        """
        if jax.process_count() == 1:
            return {}
        seconds = 0.0 if self._since is None else time.perf_counter() - self._since
        everywhere = Mesh(np.array(jax.devices()), ("devices",))
        own = np.full(jax.local_device_count(), seconds, np.float32)
        split = NamedSharding(everywhere, PartitionSpec("devices"))
        with jax.set_mesh(everywhere):
            return _summary(everywhere)(jax.make_array_from_process_local_data(split, own))


@functools.cache
def _summary(everywhere: Mesh):
    processes = jnp.asarray([device.process_index for device in everywhere.devices.flat])
    whole = NamedSharding(everywhere, PartitionSpec())

    @functools.partial(jax.jit, out_shardings=whole)
    def summary(seconds: jax.Array) -> dict[str, jax.Array]:
        return {
            "host_seconds_max": seconds.max(),
            "host_seconds_median": jnp.median(seconds),
            "slowest_process": processes[jnp.argmax(seconds)],
        }

    return summary
