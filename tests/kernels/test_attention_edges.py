"""Attention at its edges: wide windows, large scores, other GPUs and bad inputs."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from llmjax import mesh
from llmjax.kernels.flash_attention import Mask, flash_attention, gpu_schedule

SEGMENTS = np.ones((2, 9), np.int32)


def inputs(heads, kv_heads, queries, keys, channels=6):
    """Query, key and value, for two rows."""
    random = np.random.RandomState(1)
    shapes = ((heads, queries), (kv_heads, keys), (kv_heads, keys))
    return [random.randn(2, *shape, channels).astype(np.float32) for shape in shapes]


@pytest.mark.parametrize("causal", [True, False])
def test_a_window_as_wide_as_the_keys_limits_later_queries(causal):
    """With fewer keys than queries."""
    query, key, _ = inputs(1, 1, 9, 4)
    identity = np.broadcast_to(np.eye(4, 6, dtype=np.float32), (2, 1, 4, 6))
    weights = flash_attention(query, key, identity, Mask(causal=causal, window=4))[..., :4]
    distance = np.arange(9)[:, None] - np.arange(4)[None]
    seen = (np.abs(distance) < 4) & ((distance >= 0) | (not causal))
    np.testing.assert_array_equal(weights[0, 0] > 0, seen)


@pytest.mark.parametrize("dtype", [jnp.bfloat16, np.float16])
@pytest.mark.parametrize("implementation", ["xla", "reference"])
def test_scores_are_not_rounded_to_16_bits(dtype, implementation):
    """Products here are 84,375 and up to 3.5 more.

    bfloat16 has multiples of 512 there, and float16 ends at 65,504.
    """
    random = np.random.RandomState(7)
    query, key = np.full((2, 8, 16), 75.0)
    query[:, 0], key[:, 0] = 2.0 ** random.randint(0, 4, 8), random.permutation(8) / 16
    value, cotangent = random.randn(2, 8, 16).astype(dtype)

    @jax.jit
    def run(cotangent, *arrays):
        def attend(*arrays):
            return flash_attention(*arrays, Mask(causal=False), implementation=implementation)

        out, pull = jax.vjp(attend, *arrays)
        return out, *pull(cotangent)

    found = run(*(x.astype(dtype)[None, None] for x in (cotangent, query, key, value)))

    weights = np.exp(0.25 * query[:, :1] * key[:, 0])
    weights /= weights.sum(1, keepdims=True)
    value, cotangent = (x.astype(np.float64) for x in (value, cotangent))
    slope = cotangent @ value.T
    slope = 0.25 * weights * (slope - (weights * slope).sum(1, keepdims=True))
    # The gradient of queries cancels to nothing but roundings of these large keys.
    out, _, grad_key, grad_value = (np.asarray(x, np.float64)[0, 0] for x in found)
    exact = weights @ value, slope.T @ query, weights.T @ cotangent
    for ours, theirs in zip((out, grad_key, grad_value), exact, strict=True):
        error = np.abs(ours - theirs).max() / np.abs(theirs).max()
        assert error < 2 * jnp.finfo(dtype).eps


@pytest.mark.parametrize(
    ("kind", "large"),
    [
        ("NVIDIA H100 80GB HBM3", True),
        ("NVIDIA GH200 480GB", True),
        ("NVIDIA B200", True),
        ("NVIDIA A100-SXM4-80GB", False),
        ("NVIDIA GeForce RTX 4090", False),
        ("NVIDIA GB10", False),
    ],
)
def test_only_large_gpus_hold_the_tiles(kind, large, monkeypatch):
    monkeypatch.setattr(mesh, "device_kind", lambda: kind)
    assert gpu_schedule.fits() == large


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"key": np.zeros((2, 3, 9, 6))}, "key"),  # not the shape of value
        ({"query": np.zeros((2, 5, 9, 6))}, "head counts"),
        ({"query": np.zeros((2, 9, 6))}, "B,H,S,C"),
        ({"mask": Mask(SEGMENTS[:, :4])}, "segment_ids"),
        ({"mask": Mask(window=-1)}, "window=-1"),
        ({"cap": -1.0}, "cap=-1.0"),
        ({"dropout_rate": 1.0, "dropout_key": 1}, "dropout_rate=1.0"),
        ({"implementation": "cudnn"}, "GPU"),
        ({"implementation": "fastest"}, "'fastest' is none of xla"),
        ({"implementation": "reference", "dropout_rate": 0.1, "dropout_key": 1}, "dropout"),
    ],
)
def test_bad_inputs_are_named(change, message):
    query, key, value = inputs(4, 2, 9, 9)
    with pytest.raises(ValueError, match=message):
        flash_attention(**{"query": query, "key": key, "value": value} | change)
