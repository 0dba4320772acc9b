"""Compilation targets: chips that need not be present."""

import dataclasses
import importlib.util
import os
import re

import jax
from jax.experimental import topologies

from llmjax.planning.hardware import CHIPS, Chip, chip

MACHINE = 8  # GPUs joined by NVLink

# The fields of `GpuTargetConfigProto` that XLA needs, as XLA prints them for a real device.
H100 = """
gpu_device_info {
  threads_per_block_limit: 1024
  threads_per_warp: 32
  shared_memory_per_block: 49152
  shared_memory_per_block_optin: 232448
  shared_memory_per_core: 233472
  threads_per_core_limit: 2048
  core_count: 132
  fpus_per_core: 128
  block_dim_limit_x: 2147483647
  block_dim_limit_y: 65535
  block_dim_limit_z: 65535
  memory_bandwidth: 3352320000000
  l2_cache_size: 52428800
  clock_rate_ghz: 1.98
  device_memory_size: 84929347584
  cuda_compute_capability { major: 9 }
  registers_per_core_limit: 65536
  registers_per_block_limit: 65536
}
runtime_version { major: 13 minor: 0 patch: 0 }
platform_name: "CUDA"
dnn_version_info { major: 9 minor: 10 }
device_description_str: "NVIDIA H100 80GB HBM3"
"""
GPUS = {"h100": H100}
KNOWN = tuple(c.name for c in CHIPS if c.platform == "tpu" or c.name in GPUS)
# Without these, libtpu queries the cloud's metadata server, locks out other processes, and
# complains that this machine has no TPU.
_LIBTPU = {
    "TPU_SKIP_MDS_QUERY": "1",
    "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
    "TPU_WORKER_HOSTNAMES": "localhost",
    "TPU_ACCELERATOR_TYPE": "v5p-8",
}


@dataclasses.dataclass(frozen=True)
class Target:
    """A number of chips of one kind.

    Attributes:
        name: the target's name, such as "v5p:4x4x4".
        chip: their kind.
        devices: devices to build a mesh from; they compile but do not run.
    """

    name: str
    chip: Chip
    devices: list[jax.Device]


def target(name: str) -> Target:
    """Resolves a name: "v5p:4x4x4" is a torus, "h100:8" a number of GPUs.

    Raises:
        ValueError: an unknown kind, or a shape that the kind does not come in.
        ModuleNotFoundError: the kind's compiler is not installed.
    """
    kind, _, shape = name.partition(":")
    if kind not in KNOWN:
        raise ValueError(
            f"{name}: {kind or 'nothing'} is not a chip that llmjax compiles for; choose one of "
            f"{', '.join(KNOWN)}, followed by a shape: v5p:4x4x4, v6e:16x16, h100:8"
        )
    found = chip(kind)
    open_ = _tpus if found.platform == "tpu" else _gpus
    return Target(name, found, open_(name, kind, shape))


def _tpus(name: str, kind: str, shape: str) -> list[jax.Device]:
    if not re.fullmatch(r"\d+(x\d+){1,2}", shape):
        dimensions = "4x4" if kind in ("v5e", "v6e") else "4x4x4"
        raise ValueError(f"{name}: give a shape like {dimensions} after {kind}:")
    _require("libtpu", "tpu", name)
    for variable, value in _LIBTPU.items():
        os.environ.setdefault(variable, value)
    # A v4 is two cores that act as one device; the topology needs an option for that.
    options = {"chip_config_name": "megacore"} if kind == "v4" else {}
    try:
        return list(topologies.get_topology_desc(name, "tpu", **options).devices)
    except jax.errors.JaxRuntimeError as error:
        reason = str(error).split(": ", 1)[-1].splitlines()[0]
        raise ValueError(f"{name}: {kind} does not come in this shape: {reason}") from error


def _gpus(name: str, kind: str, count: str) -> list[jax.Device]:
    number = int(count) if count.isdigit() else 0
    if number < 1 or (number > MACHINE and number % MACHINE):
        raise ValueError(
            f"{name}: give a number of chips after {kind}:, up to {MACHINE} for one machine or a "
            f"multiple of {MACHINE}"
        )
    _require("jax_cuda13_plugin", "cuda", name)
    hosts, each = max(1, number // MACHINE), min(number, MACHINE)
    topology = topologies.get_topology_desc(
        kind, "cuda", target_config=GPUS[kind], topology=f"1x{hosts}x{each}"
    )
    return list(topology.devices)


def _require(module: str, extra: str, name: str) -> None:
    if importlib.util.find_spec(module) is None:
        raise ModuleNotFoundError(
            f"{name}: its compiler is not installed; run pip install 'llmjax[{extra}]'"
        )
