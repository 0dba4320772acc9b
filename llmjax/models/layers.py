"""Norms, positions, dropout and the MLP: specs and the functions over them."""

import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.nn import initializers

from llmjax import mesh
from llmjax.kernels import dropout as kernels
from llmjax.models.config import ModelConfig
from llmjax.spec import Param
from llmjax.weights import scaled_bias

HIDDEN = ("batch", "sequence", None)  # logical axes of activations [B, S, D] within blocks
STREAM = ("batch", "stream", None)  # of the residual stream between them, and its norms


class Where(NamedTuple):
    """Which part of a batch activations are of, for dropout.

    Attributes:
        rows: int32 [B], the number of each row among all of its batch; None: 0, 1, …
        positions: int32 [S], the number of each position in its row; None: 0, 1, …
    """

    rows: jax.Array | None = None
    positions: jax.Array | None = None


EVERYWHERE = Where()


def hidden_axes(x: jax.Array) -> mesh.Axes:
    """Logical axes of x [B, S, D], which may have too few positions to be split by them."""
    return HIDDEN if x.shape[1] % mesh.size("sequence") == 0 else (HIDDEN[0], None, None)


def stream_axes(length: int) -> mesh.Axes:
    """Logical axes of the residual stream [B, S, D] of this length, which may be too short."""
    return STREAM if length % mesh.size("stream") == 0 else HIDDEN


def to_stream(x: jax.Array) -> jax.Array:
    """What a block adds, [B, S, D], as the residual stream lies."""
    return mesh.place(x, stream_axes(x.shape[1]))


def from_stream(x: jax.Array) -> jax.Array:
    """The residual stream, [B, S, D], as products within a block need it."""
    return mesh.place(x, HIDDEN)


def residual_init(config: ModelConfig) -> initializers.Initializer:
    """Of projections into the residual stream, whose variance 2·L of them add up to."""
    return initializers.normal(config.init_std / math.sqrt(2 * config.num_layers))


def norm_spec(
    config: ModelConfig,
    shape: tuple[int, ...] | None = None,
    axes: tuple[str | None, ...] | None = None,
) -> dict[str, Param]:
    """The parameters of a norm.

    Args:
        config: the model's.
        shape: of what is normed; by default [D].
        axes: the logical axes of these dimensions; by default none has one.
    """
    shape = (config.embed_dim,) if shape is None else shape
    axes = (None,) * len(shape) if axes is None else axes
    less_one = config.norm == "rmsnorm1p"
    spec = {"scale": Param(shape, axes, initializers.zeros if less_one else initializers.ones)}
    if config.norm == "layernorm" and config.bias == "all":
        spec["bias"] = Param(shape, axes, initializers.zeros)
    return spec


def norm(params: dict[str, Any] | None, x: jax.Array, config: ModelConfig) -> jax.Array:
    """The model's norm of x [..., D]; without parameters x itself."""
    return x if params is None else normalize(params, x, config.norm, config.norm_epsilon)


def normalize(params: dict[str, Any], x: jax.Array, kind: str, epsilon: float) -> jax.Array:
    """LayerNorm or RMSNorm, by `ModelConfig.norm`, of x in float32, over the axes of the scale."""
    scale = params["scale"]
    over = tuple(range(-scale.ndim, 0))
    wide = x.astype(jnp.promote_types(x.dtype, jnp.float32))
    if kind == "layernorm":
        wide = wide - jnp.mean(wide, axis=over, keepdims=True)
    variance = jnp.mean(jnp.square(wide), axis=over, keepdims=True)
    wide = wide * jax.lax.rsqrt(variance + epsilon)
    wide = wide * (scale + 1 if kind == "rmsnorm1p" else scale)
    if "bias" in params:
        wide = wide + params["bias"]
    return wide.astype(x.dtype)


def rope_tables(
    positions: jax.Array, config: ModelConfig, kind: str = "global"
) -> tuple[jax.Array, jax.Array]:
    """Cosines and sines [B, S, C/2] of the rotation at positions [B, S] in layers of a kind."""
    angles = positions[..., None].astype(jnp.float32) * rope_frequencies(config, kind)
    return jnp.cos(angles), jnp.sin(angles)


def rope_frequencies(config: ModelConfig, kind: str = "global") -> jax.Array:
    """Radians by which a step turns each pair of channels, [C/2] (Su et al. 2021, equation 15).

    Stretched in global layers: position interpolation (Chen et al. 2023, equation 4), or Llama
    3.1's, between full and none for wavelengths that fit the original length between
    `low_frequency` and `high_frequency` times.
    """
    rope, local = config.rope, kind == "local"
    theta = rope.local_theta if local and rope.local_theta else rope.theta
    half = jnp.arange(config.channels // 2, dtype=jnp.float32)
    frequencies = theta ** (-half / half.shape[0])
    if rope.scaling == "none" or (local and rope.local_theta):
        return frequencies
    if rope.scaling == "linear":
        return frequencies / rope.factor
    turns = rope.original_length * frequencies / (2 * math.pi)
    ramp = (turns - rope.low_frequency) / (rope.high_frequency - rope.low_frequency)
    kept = jnp.clip(ramp, 0.0, 1.0)
    return frequencies * (kept + (1 - kept) / rope.factor)


def rope(x: jax.Array, tables: tuple[jax.Array, jax.Array]) -> jax.Array:
    """Rotates x [B, S, H, C] (Su et al. 2021, equation 34), channel i paired with i + C/2."""
    cosine, sine = (table[:, :, None].astype(x.dtype) for table in tables)
    first, second = jnp.split(x, 2, axis=-1)
    return jnp.concatenate(
        [first * cosine - second * sine, second * cosine + first * sine], axis=-1
    )


def add_bias(x: jax.Array, params: dict[str, Any], name: str) -> jax.Array:
    """x plus the bias of the projection `name`, where it has one."""
    bias = params.get(f"{name}_bias")
    return x if bias is None else x + scaled_bias(params[name], bias).astype(x.dtype)


def dropout(
    x: jax.Array,
    rate: float,
    key: jax.Array | None,
    where: Where = EVERYWHERE,
    axes: mesh.Axes = HIDDEN,
) -> jax.Array:
    """Zeroes a share of x and scales up the rest; the identity without a key.

    What is dropped depends on a number's row, position and channel alone: however a batch is cut,
    over devices, stages or in time, the same numbers are.

    Args:
        x: activations [B, S, D], or [S, D].
        rate: the share.
        key: for the draw; None switches it off.
        where: what the numbers of its rows and positions are.
        axes: the logical axes of x.
    """
    if key is None or rate == 0.0:
        return x
    known = (where.rows, where.positions, None)[-x.ndim :]
    *rows, position, channel = (
        mesh.place(jnp.arange(n, dtype=jnp.int32) if found is None else found, (axis,))
        for n, axis, found in zip(x.shape, axes, known, strict=True)
    )
    row = rows[0][:, None, None] if rows else 0
    keep = kernels.survives(kernels.seeds(key), row, position[:, None], channel, rate)
    return jnp.where(keep, x / (1.0 - rate), 0.0).astype(x.dtype)
