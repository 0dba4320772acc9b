"""Norms, positions, dropout and the MLP: specs and the functions over them."""

import functools
import math
from typing import Any

import jax
import jax.numpy as jnp
from jax.nn import initializers

from llmjax import mesh
from llmjax.models.config import ModelConfig
from llmjax.spec import Param

HIDDEN = ("batch", "sequence", None)  # logical axes of activations [B, S, D]


def residual_init(config: ModelConfig) -> initializers.Initializer:
    """Of projections into the residual stream, whose variance 2·L of them add up to."""
    return initializers.normal(config.init_std / math.sqrt(2 * config.num_layers))


def norm_spec(config: ModelConfig) -> dict[str, Param]:
    """The parameters of a norm."""
    spec = {"scale": Param((config.embed_dim,), (None,), initializers.ones)}
    if config.norm == "layernorm" and config.bias:
        spec["bias"] = Param((config.embed_dim,), (None,), initializers.zeros)
    return spec


def norm(params: dict[str, Any], x: jax.Array, config: ModelConfig) -> jax.Array:
    """LayerNorm or RMSNorm of x [..., D], in float32."""
    wide = x.astype(jnp.promote_types(x.dtype, jnp.float32))
    if config.norm == "layernorm":
        wide = wide - jnp.mean(wide, axis=-1, keepdims=True)
    variance = jnp.mean(jnp.square(wide), axis=-1, keepdims=True)
    wide = wide * jax.lax.rsqrt(variance + config.norm_epsilon) * params["scale"]
    if "bias" in params:
        wide = wide + params["bias"]
    return wide.astype(x.dtype)


def rope_tables(positions: jax.Array, config: ModelConfig) -> tuple[jax.Array, jax.Array]:
    """Cosines and sines [B, S, C/2] of the rotation at positions [B, S]."""
    half = jnp.arange(config.channels // 2, dtype=jnp.float32)
    frequencies = config.rope_theta ** (-half / half.shape[0])
    angles = positions[..., None].astype(jnp.float32) * frequencies
    return jnp.cos(angles), jnp.sin(angles)


def rope(x: jax.Array, tables: tuple[jax.Array, jax.Array]) -> jax.Array:
    """Rotates x [B, S, H, C] (Su et al. 2021, equation 34), channel i paired with i + C/2."""
    cosine, sine = (table[:, :, None].astype(x.dtype) for table in tables)
    first, second = jnp.split(x, 2, axis=-1)
    return jnp.concatenate(
        [first * cosine - second * sine, second * cosine + first * sine], axis=-1
    )


def dropout(x: jax.Array, rate: float, key: jax.Array | None) -> jax.Array:
    """Zeroes a share of x and scales up the rest; the identity without a key."""
    if key is None or rate == 0.0:
        return x
    draw = functools.partial(jax.random.bernoulli, key, 1.0 - rate, x.shape)
    keep = mesh.sharded(draw, HIDDEN)()
    return jnp.where(keep, x / (1.0 - rate), 0.0).astype(x.dtype)
