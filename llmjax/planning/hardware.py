"""Data-sheet rates and memory of accelerators, and the measured rate of CPUs."""

import dataclasses
import statistics
import time
from collections.abc import Sequence

import jax
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec

GIB = 2**30


@dataclasses.dataclass(frozen=True)
class Chip:
    """A kind of device, as its data sheet describes it.

    Attributes:
        name: common short name.
        kinds: prefixes of `jax.Device.device_kind`.
        flops: dense bfloat16 operations per second, without sparsity; float16 on the V100, which
            has no bfloat16.
        memory: bytes.
        bandwidth: memory bandwidth, bytes per second.
        network: bytes per second sent to chips of the same kind, over all links together: half of
            what data sheets call bidirectional.
        clock: cycles per second at which a TPU's matrix units reach `flops`; 0 for GPUs.
        parts: JAX devices per chip, which share its resources equally.
    """

    name: str
    kinds: tuple[str, ...]
    flops: float
    memory: float
    bandwidth: float
    network: float
    clock: float = 0.0
    parts: int = 1

    @property
    def platform(self) -> str:
        """The name of the platform in JAX."""
        return "tpu" if self.kinds[0].startswith("TPU") else "gpu"


CHIPS = (
    Chip("v4", ("TPU v4",), 275e12, 32 * GIB, 1.228e12, 300e9, 1.05e9),
    Chip("v5e", ("TPU v5 lite", "TPU v5e"), 197e12, 16 * GIB, 0.819e12, 200e9, 1.5e9),
    Chip("v5p", ("TPU v5", "TPU v5p"), 459e12, 95 * GIB, 2.765e12, 600e9, 1.75e9),
    Chip("v6e", ("TPU v6 lite", "TPU v6e"), 918e12, 32 * GIB, 1.638e12, 400e9, 1.75e9),
    Chip("tpu7x", ("TPU7x",), 2307e12, 192 * GIB, 7.38e12, 600e9, 2.2e9, 2),
    Chip("v100", ("NVIDIA V100", "Tesla V100"), 125e12, 32 * GIB, 0.9e12, 150e9),
    Chip("a100", ("NVIDIA A100",), 312e12, 80 * GIB, 2.039e12, 300e9),
    Chip("h100", ("NVIDIA H100",), 989e12, 80 * GIB, 3.35e12, 450e9),
    Chip("h100-pcie", ("NVIDIA H100 PCIe",), 756e12, 80 * GIB, 2.0e12, 300e9),
    Chip("h100-nvl", ("NVIDIA H100 NVL",), 835e12, 94 * GIB, 3.9e12, 300e9),
    Chip("h200", ("NVIDIA H200",), 989e12, 141 * GIB, 4.8e12, 450e9),
    Chip("b200", ("NVIDIA B200",), 2250e12, 180 * GIB, 8e12, 900e9),
)


def chip(name: str) -> Chip:
    """Looks up a chip by its short name, such as "v5p", in any case.

    Raises:
        ValueError: the name is unknown.
    """
    for known in CHIPS:
        if known.name == name.lower():
            return known
    raise ValueError(f"{name}: no chip of that name; there are {', '.join(c.name for c in CHIPS)}")


def chip_of(kind: str) -> Chip | None:
    """Looks up a chip by its device kind, such as "NVIDIA H100 80GB HBM3"; None if unknown."""
    found = [(len(k), c) for c in CHIPS for k in c.kinds if kind.startswith(k)]
    return max(found, key=lambda pair: pair[0])[1] if found else None


def peak_flops(devices: Sequence[jax.Device]) -> float | None:
    """Peak operations per second of all the devices together; None if their kind is unknown.

    For accelerators this is the bfloat16 figure of the data sheet. CPUs have none: this process's
    CPU devices are measured on float32 matrix products, and those of other processes count as
    equally fast.
    """
    if devices[0].platform == "cpu":
        own = [device for device in devices if device.process_index == jax.process_index()]
        return matmul_rate(own) * len(devices) / len(own)
    known = chip_of(devices[0].device_kind)
    return known.flops / known.parts * len(devices) if known else None


def matmul_rate(devices: Sequence[jax.Device], size: int = 1536, repeats: int = 5) -> float:
    """Median float32 operations per second of size³ matrix products on all devices at once."""
    # A mesh of its own, independent of the caller's.
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
