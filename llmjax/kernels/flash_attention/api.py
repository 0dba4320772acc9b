"""The public attention operation."""

import dataclasses
from typing import Literal

import jax
import jax.numpy as jnp

from llmjax import mesh
from llmjax.kernels import dropout, implementations
from llmjax.kernels.flash_attention import (
    gpu_schedule,
    libraries,
    pallas_gpu,
    pallas_tpu,
    reference,
    xla,
)
from llmjax.kernels.flash_attention.attend import Implementation, OnParts, attention
from llmjax.kernels.flash_attention.mask import Mask
from llmjax.kernels.flash_attention.ring import Ring
from llmjax.kernels.flash_attention.tiles import Options

Name = Literal["xla", "pallas_tpu", "pallas_gpu", "cudnn", "tokamax", "reference"]
BLOCKWISE = {"xla": xla, "pallas_tpu": pallas_tpu, "pallas_gpu": pallas_gpu}
LIBRARIES = {
    "cudnn": (libraries.cudnn, libraries.cudnn_refuses),
    "tokamax": (libraries.tokamax, libraries.tokamax_refuses),
}


def flash_attention(
    query: jax.Array,
    key: jax.Array,
    value: jax.Array,
    mask: Mask | None = None,
    *,
    scale: float | None = None,
    cap: float = 0.0,
    sinks: jax.Array | None = None,
    dropout_rate: float = 0.0,
    dropout_key: jax.Array | None = None,
    dropout_rows: jax.Array | None = None,
    implementation: Name | None = None,
) -> jax.Array:
    """Scaled dot-product attention with grouped heads and float32 accumulation.

    Devices may split sequences (ring attention); causal ones must be in the order of `balance`.

    Args:
        query: [B, H, S, C].
        key: [B, K, T, C]; H is a multiple of K, and each key head serves H/K query heads.
        value: [B, K, T, C].
        mask: which pairs attend; causal by default. Queries that see no key give zero.
        scale: factor on the scores; by default C^-0.5.
        cap: soft-caps scores by cap·tanh(score / cap) before the mask; 0 disables it.
        sinks: [H], scores of a key with value zero that all queries see (Xiao et al. 2024, 3.3).
        dropout_rate: dropout rate of the attention weights.
        dropout_key: dropout key, whose mask is the same on all meshes and implementations, or None.
        dropout_rows: int32 [B], the number of each row in the whole batch; by default 0, 1, …
        implementation: "xla" (blocks of queries), "pallas_tpu", "pallas_gpu" (both interpreted,
            slowly, on other devices), "cudnn", "tokamax" (needs the extra of that name), or
            "reference". The default is "pallas_tpu" on TPUs; on GPUs "cudnn" where it applies, or
            else, for 16-bit arrays on Hopper and Blackwell, "pallas_gpu"; and "xla" elsewhere.

    Returns:
        [B, H, S, C].

    Raises:
        ValueError: shapes do not match, or the chosen implementation does not support the inputs.
    """
    mask, scale = _prepare(query, key, value, mask, scale, sinks, cap, dropout_rate)
    rate = 0.0 if dropout_key is None else dropout_rate
    if implementation is None and not libraries.cudnn_refuses(query, key, mask, cap, rate, sinks):
        implementation = "cudnn"
    if implementation == "cudnn" or implementation == "tokamax":
        return _by_library(implementation, query, key, value, mask, scale, cap, rate, sinks)
    out, _ = flash_attention_with_log_sum(
        query,
        key,
        value,
        mask,
        scale=scale,
        cap=cap,
        sinks=sinks,
        dropout_rate=dropout_rate,
        dropout_key=dropout_key,
        dropout_rows=dropout_rows,
        implementation=implementation,
    )
    return out


def flash_attention_with_log_sum(
    query: jax.Array,
    key: jax.Array,
    value: jax.Array,
    mask: Mask | None = None,
    *,
    scale: float | None = None,
    cap: float = 0.0,
    sinks: jax.Array | None = None,
    dropout_rate: float = 0.0,
    dropout_key: jax.Array | None = None,
    dropout_rows: jax.Array | None = None,
    implementation: Literal["xla", "pallas_tpu", "pallas_gpu", "reference"] | None = None,
) -> tuple[jax.Array, jax.Array]:
    """`flash_attention`, and the log-sum-exp of every query's scores, float32 [B, H, S].

    Log-sum-exps combine attention over parts of the keys into attention over all of them. Both
    results are differentiable. Queries that see no key have -inf.
    """
    mask, scale = _prepare(query, key, value, mask, scale, sinks, cap, dropout_rate)
    rate = 0.0 if dropout_key is None else dropout_rate
    # Other libraries do not return log-sum-exps.
    implementations.check("flash_attention", implementation, (*BLOCKWISE, "reference"))
    chosen = implementation or _fastest(query.dtype)
    if chosen == "reference":
        if rate:
            raise ValueError("flash_attention: implementation='reference' takes no dropout key")
        return reference.attention(query, key, value, mask, scale, cap, sinks=sinks)
    batch, kv_heads = key.shape[:2]
    groups = query.shape[1] // kv_heads
    draw = dropout.draw(dropout_key if rate else None, dropout_rows, batch, kv_heads, groups)
    interpret = chosen != "xla" and implementations.interpreted(chosen)
    options = Options(scale, cap, rate, interpret)
    devices = mesh.size("sequence")
    found: Implementation = BLOCKWISE[chosen]
    if devices > 1:
        found = OnParts(Ring(found, devices))
    elif chosen != "xla":
        found = OnParts(found)
    out, log_sum = attention(found, query, key, value, mask, draw, options)
    if sinks is None:
        return out, log_sum
    sinks = sinks.astype(log_sum.dtype)[:, None]
    # The share of the softmax that the sink leaves to the other keys.
    share = jax.nn.sigmoid(log_sum - sinks)[..., None]
    return out * share.astype(out.dtype), jnp.logaddexp(log_sum, sinks)


def _by_library(name, query, key, value, mask, scale, cap, rate, sinks) -> jax.Array:
    attend, refuses = LIBRARIES[name]
    if reason := refuses(query, key, mask, cap, rate, sinks):
        raise ValueError(f"flash_attention: implementation={name!r} {reason}")
    return attend(query, key, value, mask, scale, cap)


def _fastest(dtype: jnp.dtype) -> str:
    """The fastest implementation that supports every mask."""
    if mesh.platform() == "tpu":
        return "pallas_tpu"
    on_gpu = mesh.platform() == "gpu" and jnp.dtype(dtype).itemsize == 2 and gpu_schedule.fits()
    return "pallas_gpu" if on_gpu else "xla"


def _prepare(query, key, value, mask, scale, sinks, cap, rate) -> tuple[Mask, float]:
    """The mask and the scale, made explicit."""
    mask = Mask() if mask is None else mask
    _check_shapes(query, key, value, mask)
    _check_numbers(mask, cap, rate)
    if sinks is not None and sinks.shape != query.shape[1:2]:
        raise ValueError(
            f"flash_attention: sinks {sinks.shape} must have shape {query.shape[1:2]}, one per head"
        )
    if mask.offset is None and mask.window >= max(query.shape[2], key.shape[2]):
        # Such a window limits nothing, and faster implementations do not support windows.
        mask = dataclasses.replace(mask, window=0)
    return mask, query.shape[-1] ** -0.5 if scale is None else scale


def _check_shapes(query: jax.Array, key: jax.Array, value: jax.Array, mask: Mask) -> None:
    shapes = f"query {query.shape}, key {key.shape}, value {value.shape}"
    if query.ndim != 4 or key.ndim != 4 or key.shape != value.shape:
        raise ValueError(
            f"flash_attention needs query [B,H,S,C] and key and value [B,K,T,C], not {shapes}"
        )
    batch, heads, length, channels = query.shape
    if (batch, channels) != (key.shape[0], key.shape[3]) or heads % key.shape[1]:
        raise ValueError(f"flash_attention: batch, channels or head counts differ in {shapes}")
    keys = key.shape[2]
    _check_segments("segment_ids", mask.segment_ids, (batch, length))
    _check_segments("key_segment_ids", mask.key_segment_ids, (batch, keys))
    if mask.segment_ids is not None and mask.key_segment_ids is None and keys != length:
        raise ValueError(
            f"flash_attention: {keys} keys for {length} queries need segments of their own: pass "
            "key_segment_ids"
        )
    if mask.key_segment_ids is not None and mask.segment_ids is None:
        raise ValueError("flash_attention: key_segment_ids need the queries' segment_ids too")
    devices = mesh.size("sequence")
    if devices > 1 and (
        keys != length or mask.offset is not None or mask.key_segment_ids is not None
    ):
        raise ValueError(
            f"flash_attention: context parallelism (mesh.context={devices}) only supports "
            "self-attention without a cache"
        )
    parts = devices * (2 if mask.causal and devices > 1 else 1)
    if length % parts:
        raise ValueError(
            f"flash_attention: sequences of {length} do not divide into {parts} equal parts, as "
            f"mesh.context={devices} needs"
        )


def _check_numbers(mask: Mask, cap: float, rate: float) -> None:
    if mask.window < 0 or not cap >= 0.0 or not 0.0 <= rate < 1.0:
        raise ValueError(
            f"flash_attention: window={mask.window} and cap={cap} must be at least 0 and "
            f"dropout_rate={rate} in [0, 1)"
        )


def _check_segments(name: str, segments: jax.Array | None, shape: tuple[int, int]) -> None:
    if segments is not None and segments.shape != shape:
        raise ValueError(f"flash_attention: {name} {segments.shape} must have shape {shape}")
