"""The kernel benchmark's cases: for a CPU, for a GPU, and a small rehearsal of the latter."""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from llmjax.kernels.disentangled_attention import disentangled_attention
from llmjax.kernels.flash_attention import flash_attention
from tools.benchmark.kernels import Case, attention, cross_entropy, decoding, disentangled


def cpu() -> list[Case]:
    """The default implementations against ones that materialize scores and logits, in float32."""
    implementations = {"in memory": _in_memory, "xla": _ours("xla")}
    cases = [
        attention(
            f"attention, {length} tokens",
            implementations,
            batch=max(1, 2048 // length),
            heads=8,
            kv_heads=8,
            length=length,
            channels=64,
            dtype="float32",
            backward=True,
        )
        for length in (512, 2048)
    ]
    heads = ["reference", "xla"]
    sizes: dict[str, Any] = {"tokens": 1024, "width": 512, "vocab": 32000, "dtype": "float32"}
    return [*cases, cross_entropy("cross entropy, 32,000 tokens", heads, **sizes)]


def gpu(lengths: tuple[int, ...] = (4096, 8192, 16384)) -> list[Case]:
    """Attention against cuDNN, cross entropy against materialized logits, and cache bandwidth."""
    names = ("cudnn", "pallas_gpu", "tokamax", "xla")
    cases = [
        attention(
            f"attention {'and gradients' if backward else 'forward'}, {length} tokens",
            {name: _ours(name) for name in names},
            batch=max(1, 16384 // length),
            heads=16,
            kv_heads=16,
            length=length,
            channels=128,
            dtype="bfloat16",
            backward=backward,
        )
        for length in lengths
        for backward in (False, True)
    ]
    sizes: dict[str, Any] = {"tokens": 8192, "width": 4096, "vocab": 128256, "dtype": "bfloat16"}
    cases.append(cross_entropy("cross entropy", ["reference", "xla", "pallas_gpu"], **sizes))
    cache: dict[str, Any] = {
        "batch": 8,
        "heads": 32,
        "kv_heads": 8,
        "capacity": 8192,
        "channels": 128,
    }
    return [*cases, decoding("decoding", ["xla", "pallas_gpu"], **cache, dtype="bfloat16")]


def rehearsal() -> list[Case]:
    """The GPU cases at small sizes; without a GPU, kernels run in interpret mode."""
    names = ("xla", "pallas_gpu", "cudnn", "tokamax")
    cases = [
        attention(
            f"attention {'and gradients' if backward else 'forward'}",
            {name: _ours(name) for name in names},
            batch=1,
            heads=4,
            kv_heads=2,
            length=96,
            channels=32,
            dtype="bfloat16",
            backward=backward,
        )
        for backward in (False, True)
    ]
    sizes: dict[str, Any] = {"tokens": 96, "width": 64, "vocab": 320, "dtype": "bfloat16"}
    cases.append(cross_entropy("cross entropy", ["reference", "xla", "pallas_gpu"], **sizes))
    cache: dict[str, Any] = {"batch": 2, "heads": 4, "kv_heads": 2, "capacity": 160, "channels": 32}
    return [*cases, decoding("decoding", ["xla", "pallas_gpu"], **cache, dtype="bfloat16")]


def tune_attention(implementation: Any, *, backward: bool = True) -> Callable[[int, str], Case]:
    """Causal attention by head channels and precision, for tools/tune_kernels.py."""

    def case(channels: int, dtype: str) -> Case:
        sizes: dict[str, Any] = {"batch": 2, "heads": 8, "kv_heads": 4, "length": _length()}
        sizes |= {"channels": channels, "dtype": dtype, "backward": backward}
        return attention("attention", {"default": _ours(implementation)}, **sizes)

    return case


def tune_cross_entropy(implementation: Any) -> Callable[[int, str], Case]:
    """Likewise for cross entropy, with hidden states 16 times as wide as a head."""

    def case(channels: int, dtype: str) -> Case:
        sizes: dict[str, Any] = {"tokens": _length(), "width": 16 * channels, "dtype": dtype}
        found = cross_entropy("cross entropy", [implementation], vocab=32000, **sizes)
        return dataclasses.replace(found, contenders={"default": found.contenders[implementation]})

    return case


def tune_decoding(implementation: Any) -> Callable[[int, str], Case]:
    """Likewise for decoding from a cache."""

    def case(channels: int, dtype: str) -> Case:
        sizes: dict[str, Any] = {"batch": 8, "heads": 32, "kv_heads": 8, "capacity": _length()}
        found = decoding("decoding", [implementation], channels=channels, dtype=dtype, **sizes)
        return dataclasses.replace(found, contenders={"default": found.contenders[implementation]})

    return case


def tune_disentangled(implementation: Any) -> Callable[[int, str], Case]:
    """Likewise for disentangled attention, with 512 rows of relative positions."""

    def case(channels: int, dtype: str) -> Case:
        sizes: dict[str, Any] = {"batch": 2, "heads": 8, "length": _length(), "channels": channels}
        run = functools.partial(disentangled_attention, implementation=implementation)
        return disentangled("disentangled attention", {"default": run}, **sizes, dtype=dtype)

    return case


def _length() -> int:
    """A sequence length that keeps the device busy long enough to time."""
    return 512 if jax.default_backend() == "cpu" else 4096


def _ours(implementation: Any):
    return functools.partial(flash_attention, implementation=implementation)


def _in_memory(query: jax.Array, key: jax.Array, value: jax.Array) -> jax.Array:
    """jax's own attention, which materializes the scores."""
    query, key, value = (jnp.swapaxes(x, 1, 2) for x in (query, key, value))
    out = jax.nn.dot_product_attention(query, key, value, is_causal=True, implementation="xla")
    return jnp.swapaxes(out, 1, 2)
