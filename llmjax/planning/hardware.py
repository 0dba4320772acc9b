"""What the devices at hand can do in a second."""

import statistics
import time
from collections.abc import Sequence

import jax
import jax.numpy as jnp

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
        return matmul_rate()
    kind = devices[0].device_kind
    known = [name for name in BFLOAT16_PEAK if kind.startswith(name)]
    return BFLOAT16_PEAK[max(known, key=len)] * len(devices) if known else None


def matmul_rate(size: int = 1536, repeats: int = 5) -> float:
    """Float32 operations a second of size³ matrix products on the default device: the median."""
    x = jnp.ones((size, size), jnp.float32)
    multiply = jax.jit(lambda a: a @ a)
    multiply(x).block_until_ready()
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        multiply(x).block_until_ready()
        times.append(time.perf_counter() - start)
    return 2.0 * size**3 / statistics.median(times)
