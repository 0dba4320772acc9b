"""An H100 that is not there: all that the compiler asks of one.

Needs the extra `cuda` (jax[cuda13]), and JAX_PLATFORMS=cpu where there is no GPU.
"""

import jax
from jax.experimental import topologies

# As XLA writes down a device (`GpuTargetConfigProto`).
TARGET = """
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


def devices(count: int = 1) -> list[jax.Device]:
    """So many H100s of one machine, to make a mesh of; programs compile for it, and do not run."""
    topology = topologies.get_topology_desc(
        "h100", "cuda", target_config=TARGET, topology=f"1x1x{count}"
    )
    return list(topology.devices)
