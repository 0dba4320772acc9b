"""Norms, rotary positions, biases and dropout: specs and functions."""

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
STREAM = ("batch", "stream", None)  # the same for the residual stream between blocks


class Where(NamedTuple):
    """Where activations are in their batch, for dropout.

    Attributes:
        rows: int32 [B], the number of each row in the whole batch; None means 0, 1, …
        positions: int32 [S], the number of each position in its row; None means 0, 1, …
    """

    rows: jax.Array | None = None
    positions: jax.Array | None = None


EVERYWHERE = Where()


def hidden_axes(x: jax.Array) -> mesh.Axes:
    """Logical axes of x [B, S, D]; positions are not split if there are too few of them."""
    return HIDDEN if x.shape[1] % mesh.size("sequence") == 0 else (HIDDEN[0], None, None)


def stream_axes(length: int) -> mesh.Axes:
    """Logical axes of the residual stream [B, S, D]; short sequences are not split."""
    return STREAM if length % mesh.size("stream") == 0 else HIDDEN


def to_stream(x: jax.Array) -> jax.Array:
    """Reshards an update [B, S, D] like the residual stream."""
    return mesh.place(x, stream_axes(x.shape[1]))


def from_stream(x: jax.Array) -> jax.Array:
    """Reshards the residual stream [B, S, D] for the products within a block."""
    return mesh.place(x, HIDDEN)


def residual_init(config: ModelConfig) -> initializers.Initializer:
    """Initializer of projections into the residual stream, to which 2·L of them add."""
    return initializers.normal(config.init_std / math.sqrt(2 * config.num_layers))


def norm_spec(
    config: ModelConfig,
    shape: tuple[int, ...] | None = None,
    axes: tuple[str | None, ...] | None = None,
) -> dict[str, Param]:
    """The parameters of a norm.

    Args:
        config: model configuration.
        shape: the normalized dimensions; by default [D].
        axes: the logical axes of these dimensions; none by default.
    """
    shape = (config.embed_dim,) if shape is None else shape
    axes = (None,) * len(shape) if axes is None else axes
    less_one = config.norm == "rmsnorm1p"
    spec = {"scale": Param(shape, axes, initializers.zeros if less_one else initializers.ones)}
    if config.norm == "layernorm" and config.bias == "all":
        spec["bias"] = Param(shape, axes, initializers.zeros)
    return spec


def norm(params: dict[str, Any] | None, x: jax.Array, config: ModelConfig) -> jax.Array:
    """The model's norm of x [..., D]; x itself without parameters."""
    return x if params is None else normalize(params, x, config.norm, config.norm_epsilon)


def normalize(params: dict[str, Any], x: jax.Array, kind: str, epsilon: float) -> jax.Array:
    """LayerNorm or RMSNorm (a `ModelConfig.norm`) over the scale's axes, computed in float32."""
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
    """Cosines and sines [B, S, C/2] of the rotations at positions [B, S], by kind of layer."""
    angles = positions[..., None].astype(jnp.float32) * rope_frequencies(config, kind)
    return jnp.cos(angles), jnp.sin(angles)


def rope_frequencies(config: ModelConfig, kind: str = "global") -> jax.Array:
    """The rotation of each channel pair per position, [C/2] radians (Su et al. 2021, equation 15).

    Global layers may scale them: by position interpolation (Chen et al. 2023, equation 4), or by
    Llama 3.1's ramp, from full scaling for wavelengths that fit the original length up to
    `low_frequency` times to none for those that fit it `high_frequency` times.
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
    """x plus the bias of the projection `name`, if it has one."""
    bias = params.get(f"{name}_bias")
    return x if bias is None else x + scaled_bias(params[name], bias).astype(x.dtype)


def dropout(
    x: jax.Array,
    rate: float,
    key: jax.Array | None,
    where: Where = EVERYWHERE,
    axes: mesh.Axes = HIDDEN,
) -> jax.Array:
    """Zeroes a random share of x and scales up the rest; the identity without a key.

    The mask depends only on the key and on an element's row, position and channel, so it is the
    same however a batch is split over devices and pipeline stages. The parts of an accumulated
    batch have keys of their own.

    Args:
        x: activations [B, S, D], or [S, D].
        rate: the probability that an element is zeroed.
        key: dropout key; None disables dropout.
        where: row and position numbers of x.
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
