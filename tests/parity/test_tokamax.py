"""What tokamax is asked for is what our reference computes.

Its kernels run on accelerators only: here it takes plain XLA, by the same arguments.
"""

import absl.flags
import jax
import numpy as np
import pytest

from llmjax import mesh
from llmjax.kernels.flash_attention import Mask, flash_attention

pytestmark = pytest.mark.parity
pytest.importorskip("tokamax")

# Its releases for Python 3.11 would read pytest's command line as absl's.
absl.flags.FLAGS.mark_as_parsed()

# name: heads, key heads, mask, cap
CASES = {
    "causal": (4, 2, Mask(), 0.0),
    "bidirectional": (2, 2, Mask(causal=False), 0.0),
    "window": (4, 1, Mask(window=3), 0.0),
    "bidirectional window": (2, 2, Mask(causal=False, window=3), 0.0),
    "cap": (2, 2, Mask(), 0.5),
}


def arrays(heads, kv_heads):
    random = np.random.RandomState(0)
    shapes = [(2, h, 9, 16) for h in (heads, kv_heads, kv_heads, heads)]
    return [random.randn(*shape).astype(np.float32) for shape in shapes]


def program(implementation, mask, cap):
    """The result and the gradients."""

    def run(query, key, value, cotangent):
        out, pull = jax.vjp(
            lambda *x: flash_attention(*x, mask, cap=cap, scale=0.3, implementation=implementation),
            query,
            key,
            value,
        )
        return out, *pull(cotangent)

    return jax.jit(run)


@pytest.mark.parametrize("case", CASES)
def test_equals_reference(case):
    *heads, mask, cap = CASES[case]
    given = arrays(*heads)
    expected = program("reference", mask, cap)(*given)
    for ours, theirs in zip(program("tokamax", mask, cap)(*given), expected, strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=2e-5, atol=5e-6)


def test_every_device_does_its_rows_and_heads():
    given = arrays(4, 2)
    expected = program("reference", Mask(), 0.0)(*given)
    with jax.set_mesh(mesh.make_mesh(mesh.MeshConfig(data=2, tensor=2), jax.devices()[:4])):
        placed = [mesh.place(jax.numpy.asarray(x), ("batch", "heads", None, None)) for x in given]
        actual = program("tokamax", Mask(), 0.0)(*placed)
    for ours, theirs in zip(actual, expected, strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=2e-5, atol=5e-6)


@pytest.mark.parametrize(
    "change",
    [{"mask": Mask(np.ones((2, 9), np.int32))}, {"dropout_rate": 0.1, "dropout_key": 1}],
)
def test_what_it_cannot_is_said(change):
    given = {"mask": Mask()} | change
    with pytest.raises(ValueError, match="implementation='tokamax' does not support"):
        flash_attention(*arrays(2, 2)[:3], implementation="tokamax", **given)
