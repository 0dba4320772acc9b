"""What the devices at hand can do in a second."""

import statistics
import time
from collections.abc import Sequence

import jax
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec

# Dense bfloat16 operations a second, without sparsity, from the makers' data sheets.
BFLOAT16_PEAK = {
    "TPU v4": 275e12,
    "TPU v5 lite": 197e12,
    "TPU v5e": 197e12,
    "TPU v5": 459e12,
    "TPU v5p": 459e12,
    "TPU v6 lite": 918e12,
    "TPU v6e": 918e12,
    "TPU7x": 2307e12,
    "NVIDIA A100": 312e12,
    "NVIDIA H100": 989e12,
    "NVIDIA H200": 989e12,
    "NVIDIA B200": 2250e12,
}


def peak_flops(devices: Sequence[jax.Device]) -> float | None:
    """Operations a second of all these devices together, or None when their kind is unknown.

    Of accelerators it is the data sheet's bfloat16 figure. CPUs have no such figure: theirs is
    the float32 matrix-product rate of the whole machine, measured now.
    """
    if devices[0].platform == "cpu":
        return matmul_rate(devices)
    kind = devices[0].device_kind
    known = [name for name in BFLOAT16_PEAK if kind.startswith(name)]
    return BFLOAT16_PEAK[max(known, key=len)] * len(devices) if known else None


def matmul_rate(devices: Sequence[jax.Device], size: int = 1536, repeats: int = 5) -> float:
    """Float32 operations a second of size³ matrix products on all devices at once: the median."""
    # On a mesh of its own, whatever the caller's is.
    own = jax.make_mesh((len(devices),), ("device",), devices=devices)
    with jax.set_mesh(own):
        ones = np.ones((len(devices), size, size), np.float32)
        inputs = jax.device_put(ones, NamedSharding(own, PartitionSpec("device")))
        multiply = jax.jit(lambda a: a @ a)

        def turn() -> float:
            start = time.perf_counter()
            jax.block_until_ready(multiply(inputs))
            return time.perf_counter() - start

        turn()  # compiles
        elapsed = statistics.median(turn() for _ in range(repeats))
    return 2.0 * size**3 * len(devices) / elapsed
