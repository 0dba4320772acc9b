"""How attention's GPU kernels cut their work: sizes of tiles, warps, and stages of the pipeline.

The tables are for one H100, whose multiprocessors have 227 KiB of shared memory and 256 KiB of
registers. A tile's float32 sums stay in registers, so long heads take more warps or fewer rows;
its keys and values lie in shared memory, once for each stage.
"""

import re
from typing import Any, NamedTuple

import jax.numpy as jnp
from jax.typing import DTypeLike

from llmjax import mesh
from llmjax.kernels import tuning


class Blocks(NamedTuple):
    """One kernel's.

    Attributes:
        queries: of a tile, a power of two.
        keys: of a tile, a power of two.
        warps: of a program.
        stages: how many tiles a loop has on the way from memory.
    """

    queries: int
    keys: int
    warps: int
    stages: int


class Schedule(NamedTuple):
    """All kernels'.

    Attributes:
        forward: of the result.
        few: of the result for fewer queries than a tile of `forward` has; its own number of queries
            is the least, what a tensor core takes.
        query: of the gradient by queries.
        key: of the gradients by keys and values.
        programs: how many keep a GPU busy.
    """

    forward: Blocks
    few: Blocks
    query: Blocks
    key: Blocks
    programs: int = 2 * 132


# By the most channels of a head, to a power of two.
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
# Exact float32 products are not the tensor cores': they need registers for all operands.
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
    """Whether the GPU has as much shared memory: Hopper's and Blackwell's large ones do."""
    return re.search(r"\bG?[HB]\d00\b", mesh.device_kind()) is not None


def choose(channels: int, dtype: DTypeLike) -> Schedule:
    """For heads of so many channels and arrays of this type; what was measured goes first."""
    table = HALF if jnp.dtype(dtype).itemsize == 2 else SINGLE
    default = next((table[most] for most in table if channels <= most), table[256])
    case = tuning.case(dtype, channels)
    measured: dict[str, Any] = {
        name: tuning.sizes(f"flash_attention.pallas_gpu.{name}", case, blocks)
        for name, blocks in default._asdict().items()
        if isinstance(blocks, Blocks)
    }
    return default._replace(**measured)
