"""Law 8: disentangled attention equals its reference.

That the reference is the papers' and transformers' is in tests/models/test_disentangled.py, by way
of the model.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.test_util import check_grads

from llmjax import mesh
from llmjax.kernels.disentangled_attention import (
    disentangled_attention,
    pallas_gpu,
    pallas_tpu,
    xla,
)
from llmjax.kernels.flash_attention import Mask

B, H, S, C, R = 2, 4, 11, 6, 7
SEGMENTS = np.array([[1] * 6 + [2] * 5, [0, 0] + [1] * 8 + [0]], np.int32)
MASKS = {"all": Mask(causal=False), "segments": Mask(SEGMENTS, causal=False), "causal": Mask()}
TERMS = {"both": ("c2p", "p2c"), "c2p": ("c2p",), "p2c": ("p2c",), "neither": ()}


@pytest.fixture(params=["xla", "pallas_tpu", "pallas_tpu, one tile", "pallas_gpu"])
def implementation(request, monkeypatch):
    """Every one that runs here; Pallas' kernels are interpreted. The last blocks are ragged.

    A GPU's few programs have several blocks each.
    """
    name, *one_tile = request.param.split(", ")
    monkeypatch.setattr(xla, "MIN_BLOCK", 4)
    monkeypatch.setattr(pallas_tpu, "LANES", 8)
    monkeypatch.setattr(pallas_tpu, "BLOCK", 16 if one_tile else 8)
    monkeypatch.setattr(pallas_gpu, "BLOCK", 8)
    monkeypatch.setattr(pallas_gpu, "PROGRAMS", 5)
    return name


def inputs(dtype=np.float32, length=S):
    """Query, key, value, c2p, p2c and a cotangent of the result; and rows by distance."""
    random = np.random.RandomState(1)
    arrays = [random.randn(B, H, length, C) for _ in range(3)]
    tables = [random.randn(H, R, C) for _ in range(2)]
    rows = np.clip(np.arange(length - 1, -length, -1) // 2 + R // 2, 0, R - 1)
    cotangent = random.randn(B, H, length, C)
    return [x.astype(dtype) for x in (*arrays, *tables, cotangent)], rows


def program(mask, rows, terms=TERMS["both"], **options):
    """The result and the gradients by all five arrays."""

    def attend(query, key, value, c2p, p2c):
        tables = {"c2p": c2p, "p2c": p2c}
        tables = {name: tables[name] for name in terms}
        return disentangled_attention(query, key, value, rows, mask, scale=0.2, **tables, **options)

    def run(*arrays):
        *given, cotangent = arrays
        out, pull = jax.vjp(attend, *given)
        return out, *pull(cotangent)

    return jax.jit(run)


@pytest.mark.parametrize(
    ("mask", "terms"),
    [*((mask, "both") for mask in MASKS), *(("segments", t) for t in TERMS if t != "both")],
)
def test_equals_reference(mask, terms, implementation):
    arrays, rows = inputs()
    options = {"mask": MASKS[mask], "rows": rows, "terms": TERMS[terms]}
    expected = program(**options, implementation="reference")(*arrays)
    actual = program(**options, implementation=implementation)(*arrays)
    for ours, theirs in zip(actual, expected, strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=2e-5, atol=5e-6)


@pytest.mark.parametrize("length", [1, 19])
def test_any_length_equals_reference(length, implementation):
    arrays, rows = inputs(length=length)
    mask = Mask(causal=False, window=10)
    expected = program(mask, rows, implementation="reference")(*arrays)
    actual = program(mask, rows, implementation=implementation)(*arrays)
    for ours, theirs in zip(actual, expected, strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=2e-5, atol=5e-6)


def test_bfloat16_stays_near_float32(implementation):
    """Within a few roundings (2^-8 each) of the exact result for the same rounded inputs."""
    arrays, rows = inputs(jnp.bfloat16)
    actual = program(MASKS["segments"], rows, implementation=implementation)(*arrays)
    exact = program(MASKS["segments"], rows, implementation="reference")(
        *(x.astype(np.float32) for x in arrays)
    )
    for ours, theirs in zip(actual, exact, strict=True):
        assert ours.dtype == jnp.bfloat16
        error = np.abs(ours.astype(np.float32) - theirs).max() / np.abs(theirs).max()
        assert error < 0.015


def test_reference_against_finite_differences():
    with jax.enable_x64(True):
        (*arrays, _), rows = inputs(np.float64)

        def attend(query, key, value, c2p, p2c):
            return disentangled_attention(
                query,
                key,
                value,
                rows,
                MASKS["segments"],
                c2p=c2p,
                p2c=p2c,
                scale=0.2,
                implementation="reference",
            )

        check_grads(jax.jit(attend), arrays, order=1, modes=("rev",), rtol=1e-6, atol=1e-6)


def test_dropout_keeps_the_mean():
    arrays, rows = inputs()
    options = {"mask": MASKS["segments"], "rows": rows, "dropout_rate": 0.25}
    keys = jax.random.split(jax.random.key(0), 300)
    attend = functools.partial(program, **options)
    out = jax.lax.map(lambda key: attend(dropout_key=key)(*arrays)[0], keys)
    whole = program(MASKS["segments"], rows)(*arrays)[0]
    # 5 standard errors of the mean of 300 draws, by the spread of each number over them.
    error = np.abs(np.mean(out, axis=0) - whole)
    assert np.all(error <= 5 * np.std(out, axis=0) / 300**0.5 + 1e-6)


def test_every_implementation_and_mesh_drops_the_same_weights(implementation):
    arrays, rows = inputs()
    options = {"dropout_rate": 0.25, "dropout_key": jax.random.key(2)}
    attend = functools.partial(program, MASKS["segments"], rows, **options)
    expected = attend(implementation="xla")(*arrays)
    with jax.set_mesh(mesh.make_mesh(mesh.MeshConfig(data=2, tensor=2), jax.devices()[:4])):
        axes = [("batch", "heads", None, None)] * 3 + [("heads", None, None)] * 2
        axes.append(axes[0])
        placed = [mesh.place(jnp.asarray(x), where) for x, where in zip(arrays, axes, strict=True)]
        actual = attend(implementation=implementation)(*placed)
    for ours, theirs in zip(actual, expected, strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=2e-5, atol=5e-6)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"rows": np.zeros(S, int)}, r"rows \(11,\) must have shape \(21,\)"),
        ({"c2p": np.zeros((H, R, C + 1))}, r"c2p \(4, 7, 7\) must have shape \(4, R, 6\)"),
        ({"mask": Mask(offset=np.zeros(B, np.int32))}, "not support a cache"),
        ({"mask": Mask(SEGMENTS, key_segment_ids=SEGMENTS)}, "key_segment_ids out"),
        ({"mask": Mask(SEGMENTS[:1])}, r"segment_ids \(1, 11\) must have shape \(2, 11\)"),
        ({"implementation": "fastest"}, "'fastest' is none of xla"),
    ],
)
def test_what_does_not_fit_is_said(change, message):
    (query, key, value, c2p, p2c, _), rows = inputs()
    given = {"rows": rows, "mask": Mask(causal=False), "c2p": c2p, "p2c": p2c} | change
    with pytest.raises(ValueError, match=message):
        disentangled_attention(query, key, value, scale=1.0, **given)
