"""Attention from other libraries, and checks for what they do not support.

Each function takes query, key, value, mask, scale and cap as `api.flash_attention` does.
"""

import importlib.util

import jax
import jax.numpy as jnp

from llmjax import mesh
from llmjax.kernels.flash_attention.mask import Mask
from llmjax.parts import on_parts


def cudnn(query, key, value, mask: Mask, scale: float, cap: float) -> jax.Array:
    """cuDNN's attention, through JAX; for inputs that `cudnn_refuses` accepts."""
    assert not cap
    query, key, value = (jnp.swapaxes(x, 1, 2) for x in (query, key, value))
    out = jax.nn.dot_product_attention(
        query,
        key,
        value,
        scale=scale,
        is_causal=mask.causal,
        local_window_size=(mask.window - 1, 0) if mask.window else None,
        implementation="cudnn",
    )
    return jnp.swapaxes(out, 1, 2)


def cudnn_refuses(query, key, mask: Mask, cap: float, rate: float, sinks) -> str:
    """Why cuDNN cannot run this, or an empty string."""
    if mesh.platform() != "gpu":
        return "needs an NVIDIA GPU"
    if query.dtype not in (jnp.bfloat16, jnp.float16):
        return f"needs 16-bit inputs, not {query.dtype}"
    most = _cudnn_channels()
    if query.shape[-1] % 8 or query.shape[-1] > most:
        return f"needs head channels that are a multiple of 8 up to {most}, not {query.shape[-1]}"
    if mask.segment_ids is not None or mask.offset is not None:
        return "does not support segments or cache offsets here"
    if mesh.size("sequence") > 1:
        return "does not support context parallelism"
    if mask.window and (not mask.causal or query.shape[2] != key.shape[2]):
        return "supports windows only in causal self-attention"
    extras = cap or rate or sinks is not None
    return "does not support capped scores, dropout or sinks here" if extras else ""


def _cudnn_channels() -> int:
    """The maximum number of channels per head on the local GPU: more from Hopper on."""
    capability = str(getattr(jax.local_devices()[0], "compute_capability", "0"))
    major = capability.split(".")[0]
    return 256 if major.isdigit() and int(major) >= 9 else 128


def tokamax(query, key, value, mask: Mask, scale: float, cap: float) -> jax.Array:
    """Tokamax's attention, in the implementation it selects, on every device's rows and heads."""
    from tokamax import dot_product_attention

    window = (mask.behind, mask.ahead) if mask.window else None

    def attend(query, key, value):
        query, key, value = (jnp.swapaxes(x, 1, 2) for x in (query, key, value))
        out = dot_product_attention(
            query,
            key,
            value,
            scale=scale,
            is_causal=mask.causal,
            local_window_size=window,
            logits_soft_cap=cap or None,
        )
        return jnp.swapaxes(out, 1, 2)

    queries, keys = ("batch", "heads", None, None), ("batch", "kv_heads", None, None)
    attend = on_parts(attend, (queries, keys, keys), queries, check=False)
    return attend(query, key, value)


def tokamax_refuses(query, key, mask: Mask, cap: float, rate: float, sinks) -> str:
    """Why tokamax cannot run this, or an empty string."""
    del query, key, cap  # all are supported
    if importlib.util.find_spec("tokamax") is None:
        return "needs that library: pip install 'llmjax[tokamax]'"
    if mask.segment_ids is not None or mask.offset is not None:
        return "does not support segments or cache offsets here"
    if mesh.size("sequence") > 1:
        return "does not support context parallelism"
    unsupported = rate or sinks is not None
    return "does not support dropout or sinks here" if unsupported else ""
