"""The GPU kernels become Triton's intermediate code on a machine that has neither GPU nor CUDA."""

import contextlib
import functools
import warnings

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from llmjax import mesh
from llmjax.kernels.disentangled_attention import disentangled_attention
from llmjax.kernels.flash_attention import Mask, flash_attention, pallas_gpu, xla

DEVICE = jax.sharding.AbstractDevice("NVIDIA H100 80GB HBM3", 132, "gpu")


@contextlib.contextmanager
def gpu():
    """In it, the platform is a GPU that is not here."""
    devices = jax.sharding.AbstractMesh((1,), ("data",), abstract_device=DEVICE)
    with jax.sharding.use_abstract_mesh(devices), warnings.catch_warnings():
        # Newer versions of jax say of each kernel that Pallas will leave Triton one day.
        warnings.filterwarnings("ignore", message="The Pallas Triton backend is deprecated")
        yield


def kernels(function, *arguments) -> list[str]:
    """The names of the Triton kernels in a lowered function of abstract arrays."""
    with gpu():
        program = jax.jit(function).trace(*arguments).lower(lowering_platforms=("cuda",))
    calls = program.as_text().split("@__gpu$xla.gpu.triton(")[1:]
    return [call.split('name = "')[1].split('"')[0] for call in calls]


def array(shape, dtype="bfloat16") -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(shape, dtype)


@pytest.mark.parametrize("channels", [64, 80, 96, 128, 256])
@pytest.mark.parametrize(
    ("window", "segments", "options"),
    [
        (0, False, {}),
        (128, True, {"cap": 50.0, "dropout_rate": 0.1}),
    ],
)
def test_attention(channels, window, segments, options):
    """Forward and backward, of grouped heads and ragged lengths."""

    def run(query, key, value, segment_ids, grad):
        mask = Mask(segment_ids if segments else None, window=window)
        attend = functools.partial(
            flash_attention, mask=mask, implementation="pallas_gpu", **options
        )
        attend = functools.partial(attend, dropout_key=jax.random.key(0))
        out, pull = jax.vjp(attend, query, key, value)
        return out, *pull(grad)

    query, key = array((2, 4, 500, channels)), array((2, 2, 500, channels))
    found = kernels(run, query, key, key, array((2, 500), "int32"), query)
    assert len(found) == 3


@pytest.mark.parametrize("channels", [64, 80, 128, 256])
@pytest.mark.parametrize("length", [1, 5])
def test_attention_to_a_cache(channels, length):
    """One kernel, chosen by default, whatever cuDNN takes."""

    def run(query, key, value, offset):
        return flash_attention(query, key, value, Mask(offset=offset))

    query, key = array((2, 6, length, channels)), array((2, 2, 1000, channels))
    assert len(kernels(run, query, key, key, array((2,), "int32"))) == 1


@pytest.mark.parametrize(
    ("window", "keys", "options", "cudnn"),
    [
        (0, 24, {}, True),
        (5, 24, {}, True),
        (0, 32, {}, True),
        (5, 32, {}, False),
        (0, 24, {"cap": 50.0}, False),
    ],
)
def test_attention_goes_by_cudnn_where_it_can(window, keys, options, cudnn, monkeypatch):
    """By what it is asked for, which jax computes without it, too; the others it is not asked."""
    random = np.random.RandomState(0)
    query = random.randn(1, 4, 24, 16).astype(jnp.bfloat16)
    key, value = random.randn(2, 1, 2, keys, 16).astype(jnp.bfloat16)
    expected = flash_attention(query, key, value, Mask(window=window), **options)
    asked = []

    def stand_in(*arrays, implementation, **options):
        asked.append(implementation)
        return attend(*arrays, implementation="xla", **options)

    attend = jax.nn.dot_product_attention
    monkeypatch.setattr(jax.nn, "dot_product_attention", stand_in)
    monkeypatch.setattr(mesh, "platform", lambda: "gpu")
    monkeypatch.setattr(pallas_gpu, "forward", xla.forward)
    actual = flash_attention(query, key, value, Mask(window=window), **options)
    assert asked == ["cudnn"] * cudnn
    np.testing.assert_allclose(
        actual.astype(np.float32), expected.astype(np.float32), rtol=0.02, atol=0.02
    )


@pytest.mark.parametrize(
    ("channels", "dtype", "terms"),
    [
        (64, "bfloat16", ("c2p", "p2c")),
        (80, "bfloat16", ("c2p",)),
        (128, "float32", ("p2c",)),
        (64, "bfloat16", ()),
    ],
)
@pytest.mark.parametrize(("window", "segments"), [(0, True), (100, False)])
def test_disentangled_attention(channels, dtype, terms, window, segments):
    """Forward and backward, of ragged lengths."""

    def run(query, key, value, tables, segment_ids, grad):
        def attend(query, key, value, tables):
            return disentangled_attention(
                query,
                key,
                value,
                np.arange(999) // 2,
                Mask(segment_ids if segments else None, causal=False, window=window),
                **tables,
                scale=0.1,
                dropout_rate=0.1,
                dropout_key=jax.random.key(0),
                implementation="pallas_gpu",
            )

        out, pull = jax.vjp(attend, query, key, value, tables)
        return out, *pull(grad)

    states = array((2, 4, 500, channels), dtype)
    tables = {term: array((4, 500, channels), dtype) for term in terms}
    found = kernels(run, states, states, states, tables, array((2, 500), "int32"), states)
    assert len(found) == (4 if terms else 3)
