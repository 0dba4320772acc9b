"""Law 8: attention by blocks equals its reference, which finite differences hold up."""

import functools

import hypothesis
import hypothesis.extra.numpy
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import strategies as st
from jax.test_util import check_grads

from llmjax import mesh
from llmjax.kernels.flash_attention import (
    Mask,
    flash_attention,
    flash_attention_with_log_sum,
    gpu_schedule,
    reference,
    tiles,
    xla,
)

SEGMENTS = np.array([[1, 1, 1, 2, 2, 2, 2, 3, 0], [0, 1, 1, 1, 1, 1, 0, 2, 2]], np.int32)

# name: (heads, key heads, queries, keys, mask)
CASES = {
    "causal": (2, 2, 9, 9, Mask()),
    "even blocks": (2, 2, 8, 8, Mask()),
    "grouped": (4, 2, 9, 9, Mask()),
    "one key head": (3, 1, 7, 7, Mask()),
    "one token": (2, 1, 1, 1, Mask()),
    "bidirectional": (4, 2, 9, 9, Mask(causal=False)),
    "cross": (2, 2, 5, 9, Mask(causal=False)),
    "segments": (4, 2, 9, 9, Mask(SEGMENTS)),
    "bidirectional segments": (2, 2, 9, 9, Mask(SEGMENTS, causal=False)),
    "cache": (4, 2, 3, 12, Mask(offset=np.array([0, 8], np.int32))),
    "cache, one token": (4, 1, 1, 12, Mask(offset=np.array([3, 11], np.int32))),
    "more queries than keys": (2, 2, 9, 5, Mask()),
    "window": (4, 2, 13, 13, Mask(window=3)),
    "window of one": (2, 2, 9, 9, Mask(window=1)),
    "wide window": (2, 2, 9, 9, Mask(window=9)),
    "bidirectional window": (4, 2, 13, 13, Mask(causal=False, window=3)),
    "window in segments": (2, 2, 9, 9, Mask(SEGMENTS, causal=False, window=2)),
    "window in a cache": (4, 2, 3, 12, Mask(offset=np.array([0, 8], np.int32), window=4)),
}


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch):
    """Several blocks, the last one ragged, for so few queries."""
    monkeypatch.setattr(xla, "MIN_BLOCK", 4)
    monkeypatch.setattr(tiles, "LANES", 4)
    monkeypatch.setattr(tiles, "ROWS", 8)
    monkeypatch.setattr(tiles, "SCORES", 32)
    blocks = gpu_schedule.Blocks(4, 4, 4, 2)
    schedule = gpu_schedule.Schedule(blocks._replace(queries=8), blocks, blocks, blocks)
    monkeypatch.setattr(gpu_schedule, "choose", lambda *_: schedule)


@pytest.fixture(params=["xla", "pallas_tpu", "pallas_gpu"])
def implementation(request):
    """Every one that runs here; Pallas' kernels are interpreted."""
    return request.param


def inputs(heads, kv_heads, queries, keys, dtype=np.float32, channels=6):
    """Query, key, value and a cotangent of the result, for two rows."""
    random = np.random.RandomState(1)
    shapes = ((heads, queries), (kv_heads, keys), (kv_heads, keys), (heads, queries))
    return [random.randn(2, *shape, channels).astype(dtype) for shape in shapes]


@functools.partial(jax.jit, static_argnames=("implementation", "dropout_rate", "cap"))
def run(query, key, value, cotangent, mask, **options):
    """The result and the three gradients."""
    out, pull = jax.vjp(
        lambda q, k, v: flash_attention(q, k, v, mask, **options), query, key, value
    )
    return out, *pull(cotangent.astype(out.dtype))


# Interpreted kernels take seconds to compile: what the sweep below has not, and what is at an edge.
KERNEL_CASES = (
    "grouped",
    "one token",
    "segments",
    "cache, one token",
    "window in segments",
    "window in a cache",
)


def or_slow(cases, chosen):
    """All cases for XLA; for Pallas' kernels those that are not chosen are slow tests."""
    kernels = ("pallas_tpu", "pallas_gpu")
    marks = {case: () if case in chosen else pytest.mark.slow for case in cases}
    return [
        *((case, "xla") for case in cases),
        *(pytest.param(case, name, marks=marks[case]) for name in kernels for case in cases),
    ]


@pytest.mark.parametrize(("case", "implementation"), or_slow(CASES, KERNEL_CASES))
def test_equals_reference(case, implementation):
    *sizes, mask = CASES[case]
    check_against_reference(implementation, sizes, mask)


@pytest.mark.parametrize(
    ("case", "implementation"),
    [
        *((case, "xla") for case in ("grouped", "window", "segments", "cache")),
        ("grouped", "pallas_tpu"),
        *((case, "pallas_gpu") for case in ("grouped", "window", "cache, one token")),
    ],
)
def test_capped_scores_equal_reference(case, implementation):
    *sizes, mask = CASES[case]
    check_against_reference(implementation, sizes, mask, cap=0.5)


def check_against_reference(implementation, sizes, mask, **options):
    arrays = inputs(*sizes)
    actual = run(*arrays, mask, implementation=implementation, **options)
    expected = run(*arrays, mask, implementation="reference", **options)
    for ours, theirs in zip(actual, expected, strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=2e-5, atol=2e-6)


@hypothesis.given(
    hypothesis.extra.numpy.arrays(np.int32, (2, 9), elements={"min_value": 0, "max_value": 3})
)
@hypothesis.settings(
    max_examples=25,
    deadline=None,
    suppress_health_check=[hypothesis.HealthCheck.function_scoped_fixture],
)
def test_any_segments_equal_reference_and_padding_is_inert(implementation, segments):
    """Segments in any order, empty rows and rows of padding included."""
    arrays = inputs(4, 2, 9, 9)
    actual = run(*arrays, Mask(segments), implementation=implementation)
    expected = run(*arrays, Mask(segments), implementation="reference")
    for ours, theirs in zip(actual, expected, strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=2e-5, atol=2e-6)
        # Result, and gradients by query, key and value, of positions that are padding.
        assert not np.any(np.swapaxes(ours, 1, 2)[segments == 0])


SHAPES = {
    "heads": st.sampled_from([(1, 1), (2, 2), (4, 2), (3, 1), (6, 2), (8, 1)]),
    "lengths": st.tuples(st.integers(1, 20), st.integers(1, 20)),
    "causal": st.booleans(),
    "window": st.integers(0, 6),
    "offset": st.none() | st.tuples(st.integers(0, 12), st.integers(0, 12)),
    "cap": st.sampled_from([0.0, 0.7]),
}


@pytest.mark.parametrize("examples", [3, pytest.param(40, marks=pytest.mark.slow)])
def test_any_shape_equals_reference(implementation, examples):
    def check(heads, lengths, causal, window, offset, cap):
        offset = None if offset is None else np.array(offset, np.int32)
        arrays = inputs(*heads, *lengths)
        mask = Mask(offset=offset, causal=causal, window=window)
        actual = run(*arrays, mask, cap=cap, implementation=implementation)
        expected = run(*arrays, mask, cap=cap, implementation="reference")
        for ours, theirs in zip(actual, expected, strict=True):
            np.testing.assert_allclose(ours, theirs, rtol=2e-5, atol=5e-6)

    # Every shape is compiled anew: few a run, others in each.
    settings = hypothesis.settings(max_examples=examples, deadline=None)
    settings(hypothesis.given(**SHAPES)(check))()


@pytest.mark.parametrize(
    ("case", "cap"),
    [("segments", 0.0), ("cross", 0.0), ("more queries than keys", 0.0), ("window", 0.5)],
)
def test_reference_against_finite_differences(case, cap):
    *sizes, mask = CASES[case]
    with jax.enable_x64(True):
        arrays = inputs(*sizes, np.float64)[:3]
        attend = functools.partial(flash_attention, mask=mask, cap=cap, implementation="reference")
        check_grads(jax.jit(attend), arrays, order=1, modes=("rev",), rtol=1e-6, atol=1e-6)


def test_scale_is_the_callers():
    query, key, value, _ = inputs(2, 2, 8, 8)
    np.testing.assert_allclose(
        flash_attention(query, key, value, scale=0.5),
        flash_attention(query * (0.5 * 6**0.5), key, value),
        rtol=1e-5,
        atol=1e-6,
    )


@pytest.mark.parametrize(("case", "implementation"), or_slow(["grouped", "segments"], ["segments"]))
def test_bfloat16_stays_near_float32(case, implementation):
    """Within a few roundings (2^-8 each) of the exact result for the same rounded inputs."""
    *sizes, mask = CASES[case]
    arrays = inputs(*sizes, jnp.bfloat16)
    actual = run(*arrays, mask, implementation=implementation)
    exact = run(*(x.astype(np.float32) for x in arrays), mask, implementation="reference")
    for ours, theirs in zip(actual, exact, strict=True):
        assert ours.dtype == jnp.bfloat16
        error = np.abs(ours.astype(np.float32) - theirs).max() / np.abs(theirs).max()
        assert error < 0.015


attend = jax.jit(flash_attention, static_argnames=("scale", "dropout_rate", "implementation"))


@pytest.mark.parametrize(
    ("case", "implementation"),
    or_slow(["causal", "segments", "window in a cache"], ["window in a cache"]),
)
def test_log_sums_and_sinks_equal_reference(case, implementation):
    """With gradients of both results, and of the sinks."""
    *sizes, mask = CASES[case]
    *arrays, cotangent = inputs(*sizes)
    sinks = np.random.RandomState(6).randn(sizes[0]).astype(np.float32)
    expected = with_log_sums("reference", mask, cotangent)(*arrays, sinks)
    actual = with_log_sums(implementation, mask, cotangent)(*arrays, sinks)
    for ours, theirs in zip(jax.tree.leaves(actual), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=2e-5, atol=5e-6)


def with_log_sums(implementation, mask, cotangent):
    """Results without and with sinks, and gradients."""

    def weighted(query, key, value, sinks):
        run = functools.partial(
            flash_attention_with_log_sum, query, key, value, mask, implementation=implementation
        )
        found = [run(), run(sinks=sinks)]
        return sum(jnp.sum(out * cotangent) + sine(log_sum) for out, log_sum in found), found

    def sine(log_sum):
        return jnp.sum(jnp.sin(jnp.where(log_sum == -jnp.inf, 0.0, log_sum)))

    return jax.jit(jax.grad(weighted, argnums=(0, 1, 2, 3), has_aux=True))


def test_attention_over_parts_of_the_keys_adds_up(implementation):
    """By the log-sum-exps: what a ring of devices does, or a cache in pages."""
    query, key, value, _ = inputs(4, 2, 9, 16)
    attend = functools.partial(
        flash_attention_with_log_sum, mask=Mask(causal=False), implementation=implementation
    )
    whole, total = attend(query, key, value)
    parts = [attend(query, key[:, :, part], value[:, :, part]) for part in (np.s_[:7], np.s_[7:])]
    shares = [jnp.exp(log_sum - total)[..., None] for _, log_sum in parts]
    added = sum(out * share for (out, _), share in zip(parts, shares, strict=True))
    np.testing.assert_allclose(added, whole, rtol=2e-5, atol=2e-6)


def survivors(key, rate, mask, sizes, implementation):
    """Dropout's factors [B, H, S, T], seen in a product with the identity as the values."""
    _, kv_heads, _, keys = sizes
    query, keyed, _, _ = inputs(*sizes)
    identity = np.broadcast_to(np.eye(keys, dtype=np.float32), (2, kv_heads, keys, keys))
    # Channels of queries and keys that are zero do not change their products.
    query, keyed = (np.pad(x, [(0, 0)] * 3 + [(0, keys - x.shape[3])]) for x in (query, keyed))
    options = {"scale": 6**-0.5, "dropout_rate": rate, "implementation": implementation}
    dropped = attend(query, keyed, identity, mask, dropout_key=key, **options)
    whole = attend(query, keyed, identity, mask, **options)
    return np.divide(dropped, whole, out=np.zeros_like(dropped), where=np.asarray(whole) > 0)


def test_dropout_equals_reference_with_the_same_survivors(implementation):
    *sizes, mask = CASES["segments"]
    key, rate = jax.random.key(3), 0.25
    keep = survivors(key, rate, mask, sizes, implementation)
    kept = keep > 0
    np.testing.assert_allclose(keep[kept], 1 / (1 - rate), rtol=1e-5)

    *arrays, cotangent = inputs(*sizes)
    options = {"implementation": implementation, "dropout_rate": rate, "dropout_key": key}
    actual = run(*arrays, cotangent, mask, **options)
    out, pull = jax.vjp(
        lambda q, k, v: reference.attention(q, k, v, mask, 6**-0.5, keep=keep)[0], *arrays
    )
    for ours, theirs in zip(actual, (out, *pull(cotangent)), strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=2e-5, atol=2e-6)


@pytest.mark.parametrize("case", ["segments", "window in a cache"])
def test_every_implementation_drops_the_same_weights(case):
    *sizes, mask = CASES[case]
    one, *others = (
        survivors(jax.random.key(3), 0.25, mask, sizes, implementation) > 0
        for implementation in ("xla", "pallas_tpu", "pallas_gpu")
    )
    for other in others:
        np.testing.assert_array_equal(one, other)


@pytest.mark.parametrize("case", ["segments", "window in a cache"])
def test_every_device_does_its_rows_and_heads(case, implementation):
    """With the dropout that they have on one device, and gradients."""
    *sizes, mask = CASES[case]
    key = jax.random.key(3)
    options = {"implementation": implementation, "dropout_rate": 0.25, "dropout_key": key}
    arrays = inputs(*sizes)
    expected = run(*arrays, mask, **options)
    config = mesh.MeshConfig(data=2, tensor=2)
    with jax.set_mesh(mesh.make_mesh(config, jax.devices()[:4])):
        placed = [mesh.place(jnp.asarray(x), ("batch", "heads", None, None)) for x in arrays]
        actual = run(*placed, mask, **options)
    for ours, theirs in zip(actual, expected, strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=2e-5, atol=2e-6)


def test_dropout_drops_the_share_and_keeps_the_mean(implementation):
    *sizes, mask = CASES["bidirectional"]
    rate, draws = 0.25, 50
    keys = jax.random.split(jax.random.key(4), draws)
    factors = np.stack([survivors(key, rate, mask, sizes, implementation) for key in keys])
    # 5 standard errors of a Bernoulli mean over all draws of all pairs, and over those of a pair.
    assert abs((factors > 0).mean() - (1 - rate)) < 5 * (rate * (1 - rate) / factors.size) ** 0.5
    spread = (rate / (1 - rate) / draws) ** 0.5
    assert np.abs(factors.mean(0) - 1).max() < 5 * spread
    # Neither rows nor heads nor blocks share their draws.
    flat = (factors[0] > 0).reshape(2 * 4 * 9, 9)
    assert len(np.unique(flat, axis=0)) > 40


def test_dropout_is_a_function_of_its_key(implementation):
    query, key, value, _ = inputs(2, 2, 9, 9)
    options = {"dropout_rate": 0.5, "implementation": implementation}

    def attend(seed):
        return flash_attention(query, key, value, dropout_key=jax.random.key(seed), **options)

    np.testing.assert_array_equal(attend(0), attend(0))
    assert not np.allclose(attend(0), attend(1))


def test_dropout_gradient_against_finite_differences():
    *sizes, mask = CASES["segments"]
    with jax.enable_x64(True):
        arrays = inputs(*sizes, np.float64)[:3]

        @jax.jit
        def attend(query, key, value):
            return flash_attention(
                query, key, value, mask, dropout_rate=0.3, dropout_key=jax.random.key(5)
            )

        check_grads(attend, arrays, order=1, modes=("rev",), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("causal", [True, False])
def test_a_window_is_a_distance(causal, implementation):
    """Which keys move which queries, by the definition."""
    query, key, _, _ = inputs(1, 1, 11, 11)
    identity = np.broadcast_to(np.eye(11, dtype=np.float32), (2, 1, 11, 11))
    query, key = (np.pad(x, [(0, 0)] * 3 + [(0, 5)]) for x in (query, key))
    weights = flash_attention(
        query, key, identity, Mask(causal=causal, window=4), implementation=implementation
    )
    distance = np.arange(11)[:, None] - np.arange(11)[None]
    seen = (np.abs(distance) < 4) & ((distance >= 0) | (not causal))
    np.testing.assert_array_equal(weights[0, 0] > 0, seen)
