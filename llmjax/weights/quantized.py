"""Weights in 8 and 4 bits."""

import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct
from jax.sharding import PartitionSpec

from llmjax import mesh

BLOCK = 64  # weights that share a scale in 4 bits
GROUP = 256  # maximum number of scales that share a scale of their own

# The 16 values of NormalFloat: quantiles of the normal distribution between -1 and 1, with one 0
# (Dettmers et al. 2023, appendix E).
NORMAL_FLOAT = (
    -1.0,
    -0.6961928009986877,
    -0.5250730514526367,
    -0.39491748809814453,
    -0.28444138169288635,
    -0.18477343022823334,
    -0.09105003625154495,
    0.0,
    0.07958029955625534,
    0.16093020141124725,
    0.24611230194568634,
    0.33791524171829224,
    0.44070982933044434,
    0.5626170039176941,
    0.7229568362236023,
    1.0,
)


@struct.dataclass
class Int8:
    """A weight in 8-bit integers: values · scale (Dettmers et al. 2022, section 2.1).

    Attributes:
        values: int8, the weight's shape.
        scale: float32, broadcastable to it: one scale for each output channel.
    """

    values: Any
    scale: Any

    @property
    def ndim(self) -> int:
        """The weight's number of axes."""
        return self.values.ndim

    def dequantize(self, dtype: Any = jnp.float32) -> jax.Array:
        """The weight as an array."""
        return self.values.astype(dtype) * self.scale.astype(dtype)


@struct.dataclass
class Nf4:
    """A weight in 4-bit NormalFloats with quantized scales (Dettmers et al. 2023, section 3).

    A block of 64 weights, along the last axis or the last few axes together, shares a scale. The
    scales minus their mean are 8-bit integers times a step that up to 256 of them share, along the
    axis before the blocks. The paper uses 8-bit floats instead, which are coarser unless a scale
    is some fifty times the mean.

    Attributes:
        codes: uint8, the weight's shape with half of its last axis; even indices in the low bits.
        scales: int8, one per block: [..., N/64], where N is the size of the axes that blocks span.
        steps: float32, one per group of scales: [..., G, N/64].
        mean: float32, the mean scale of each matrix, with as many axes.
    """

    codes: Any
    scales: Any
    steps: Any
    mean: Any

    @property
    def ndim(self) -> int:
        """The weight's number of axes."""
        return self.codes.ndim

    def dequantize(self, dtype: Any = jnp.float32) -> jax.Array:
        """The weight as an array."""
        kept, split = self.scales.ndim - 1, mesh.spec_of(self.codes)
        shape = (*self.codes.shape[:-1], 2 * self.codes.shape[-1])
        codes = jnp.stack([self.codes & 15, self.codes >> 4], axis=-1)
        table = jnp.asarray(NORMAL_FLOAT, jnp.float32)
        values = table.at[_reshape(codes, shape, split)].get(out_sharding=split)
        rows = self.scales.shape[-2]
        steps = jnp.repeat(self.steps, rows // self.steps.shape[-2], axis=-2)
        scales = jnp.repeat(self.scales * steps + self.mean, BLOCK, axis=-1)
        # Devices may split the axes that blocks span, even within a block: all hold all scales.
        return (values * _reshape(scales, shape, _whole(split, kept))).astype(dtype)


class Layout(NamedTuple):
    """The layout of a 4-bit weight.

    Attributes:
        kept: number of axes before those that blocks span.
        blocks: number of blocks along the spanned axes.
        groups: number of groups of scales along the axis before.
    """

    kept: int
    blocks: int
    groups: int


def layout(shape: tuple[int, ...], stacked: int = 0) -> Layout:
    """The layout of a weight of this shape, whose first `stacked` axes stack matrices.

    Raises:
        ValueError: blocks of 64 do not divide its last axes.
    """
    for kept in range(len(shape) - 1, stacked, -1):
        length = math.prod(shape[kept:])
        if length % BLOCK == 0 and shape[-1] % 2 == 0:
            rows = shape[kept - 1]
            group = max(n for n in range(1, min(rows, GROUP) + 1) if rows % n == 0)
            return Layout(kept, length // BLOCK, rows // group)
    raise ValueError(
        f"a weight {shape}: 4 bits need blocks of {BLOCK} along its last axes; leave it "
        "unquantized, or use 8 bits"
    )


def quantize(weight: jax.Array, inputs: int = 1, stacked: int = 0) -> Int8:
    """Rounds to 8 bits, with the largest magnitude over the input axes as the scale.

    Args:
        weight: [stacked..., inputs..., outputs...].
        inputs: number of axes that products contract.
        stacked: number of axes before them that stack weights.
    """
    over = tuple(range(stacked, stacked + inputs))
    largest = jnp.max(jnp.abs(weight), axis=over, keepdims=True)
    # The smallest normal number: XLA flushes smaller ones to 0, and 0 / 0 is NaN.
    scale = jnp.maximum(largest / 127, jnp.finfo(jnp.float32).tiny)
    return Int8(jnp.round(weight / scale).astype(jnp.int8), scale.astype(jnp.float32))


def quantize_nf4(weight: jax.Array, stacked: int = 0) -> Nf4:
    """Rounds to the nearest 4-bit NormalFloat of each block.

    Args:
        weight: [stacked..., ...].
        stacked: number of leading axes that stack weights.

    Raises:
        ValueError: blocks of 64 do not divide its last axes.
    """
    kept, count, groups = layout(weight.shape, stacked)
    shape, rows = weight.shape, weight.shape[kept - 1]
    # There may be fewer groups than devices that split their rows.
    split = _whole(mesh.spec_of(weight), kept - 1)
    weight = _reshape(weight.astype(jnp.float32), shape, split)
    values = weight.reshape(*shape[:kept], count, BLOCK)
    largest = jnp.max(jnp.abs(values), axis=-1)
    mean = jnp.mean(largest, axis=tuple(range(stacked, kept + 1)), keepdims=True)
    less = largest - mean
    grouped = less.reshape(*shape[: kept - 1], groups, rows // groups, count)
    steps = jnp.max(jnp.abs(grouped), axis=-2) / 127
    steps = jnp.maximum(steps, jnp.finfo(jnp.float32).tiny)
    repeated = jnp.repeat(steps, rows // groups, axis=-2)
    scales = jnp.round(less / repeated).astype(jnp.int8)
    # Codes relative to the scales that `dequantize` will compute.
    found = values / jnp.maximum(scales * repeated + mean, jnp.finfo(jnp.float32).tiny)[..., None]
    borders = (np.array(NORMAL_FLOAT[1:]) + np.array(NORMAL_FLOAT[:-1])) / 2
    codes = sum((found > border).astype(jnp.uint8) for border in borders)
    codes = codes.reshape(*shape[:-1], shape[-1] // 2, 2)
    return Nf4(codes[..., 0] | codes[..., 1] << 4, scales, steps, mean)


def _whole(split: PartitionSpec | None, kept: int) -> PartitionSpec | None:
    """The sharding of a weight with only its first `kept` axes split."""
    return None if split is None else PartitionSpec(*split[:kept])


def _reshape(x: jax.Array, shape: tuple[int, ...], split: PartitionSpec | None) -> jax.Array:
    if split is None:
        return x.reshape(shape)
    if x.shape == shape:
        return jax.reshard(x, split)
    return jnp.reshape(x, shape, out_sharding=split)
