"""Tile sizes, warps and pipeline stages of attention's GPU kernels.

The tables are for an H100, whose multiprocessors have 227 KiB of shared memory and 256 KiB of
registers. A tile's float32 accumulators stay in registers, so wide heads need more warps or fewer
rows; its keys and values are in shared memory, once per stage.
"""

import re
from typing import Any, NamedTuple

import jax.numpy as jnp
from jax.typing import DTypeLike

from llmjax import mesh
from llmjax.kernels import tuning


class Blocks(NamedTuple):
    """The sizes of one kernel.

    Attributes:
        queries: queries in a tile, a power of two.
        keys: keys in a tile, a power of two.
        warps: warps of a program.
        stages: tiles that a loop keeps in flight from memory.
    """

    queries: int
    keys: int
    warps: int
    stages: int


class Schedule(NamedTuple):
    """The sizes of all kernels.

    Attributes:
        forward: for the forward pass.
        few: for the forward pass with fewer queries than a tile of `forward`; its number of queries
            is the minimum for a tensor core.
        query: for the gradient of queries.
        key: for the gradients of keys and values.
        programs: number of programs that keeps a GPU busy.
    """

    forward: Blocks
    few: Blocks
    query: Blocks
    key: Blocks
    programs: int = 2 * 132


# By the maximum number of channels of a head, rounded up to a power of two.
HALF = {
    64: Schedule(
        forward=Blocks(128, 64, 4, 3),
        few=Blocks(16, 128, 4, 3),
        query=Blocks(128, 64, 8, 2),
        key=Blocks(64, 128, 8, 2),
    ),
    128: Schedule(
        forward=Blocks(128, 64, 8, 3),
        few=Blocks(16, 64, 4, 3),
        query=Blocks(64, 64, 4, 2),
        key=Blocks(32, 128, 8, 2),
    ),
    256: Schedule(
        forward=Blocks(64, 64, 4, 2),
        few=Blocks(16, 64, 4, 2),
        query=Blocks(64, 32, 4, 2),
        key=Blocks(32, 64, 8, 2),
    ),
}
# Exact float32 products do not run on tensor cores: they need registers for all operands.
SINGLE = {
    128: Schedule(
        forward=Blocks(32, 16, 8, 2),
        few=Blocks(16, 32, 4, 2),
        query=Blocks(32, 32, 8, 2),
        key=Blocks(32, 32, 8, 2),
    ),
    256: Schedule(
        forward=Blocks(32, 16, 8, 2),
        few=Blocks(16, 16, 4, 2),
        query=Blocks(32, 16, 8, 2),
        key=Blocks(16, 32, 8, 2),
    ),
}


def fits() -> bool:
    """Whether the GPU has as much shared memory: large Hopper and Blackwell GPUs do."""
    return re.search(r"\bG?[HB]\d00\b", mesh.device_kind()) is not None


def choose(channels: int, dtype: DTypeLike) -> Schedule:
    """The schedule for heads of `channels` channels; measured sizes override the tables."""
    table = HALF if jnp.dtype(dtype).itemsize == 2 else SINGLE
    default = next((table[most] for most in table if channels <= most), table[256])
    case = tuning.case(dtype, channels)
    measured: dict[str, Any] = {
        name: tuning.sizes(f"flash_attention.pallas_gpu.{name}", case, blocks)
        for name, blocks in default._asdict().items()
        if isinstance(blocks, Blocks)
    }
    return default._replace(**measured)
