"""Attention over sequences that devices share equals the reference's, values and gradients."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from llmjax import mesh
from llmjax.kernels.flash_attention import Mask, balance, flash_attention, restore

B, H, K, S, C = 2, 4, 2, 32, 8
AXES = ("batch", "sequence", None, None)


def segments() -> np.ndarray:
    """A row of documents that end within and at the parts; one that is padding for its last half.

    The parts of two of four devices then hold nothing that anybody sees.
    """
    rows = np.zeros((B, S), np.int32)
    rows[0, :5], rows[0, 5:16], rows[0, 16:29] = 1, 2, 3
    rows[1, :16] = 1
    return rows


CASES = {
    "causal": (Mask(causal=True), {}),
    "causal, documents": (Mask(segments(), causal=True), {}),
    "causal, window, cap": (Mask(segments(), causal=True, window=6), {"cap": 3.0}),
    "both ways, documents": (Mask(segments(), causal=False), {}),
}


def arrays() -> tuple[np.ndarray, ...]:
    random = np.random.default_rng(0)
    shapes = [(B, H, S, C), (B, K, S, C), (B, K, S, C), (B, H, S, C)]
    return tuple(random.normal(size=shape).astype(np.float32) for shape in shapes)


def run(query, key, value, weight, mask, options, implementation=None):
    """The result, and the gradients of a weighted sum of it by query, key and value."""

    def total(query, key, value):
        out = flash_attention(query, key, value, mask, implementation=implementation, **options)
        return jnp.sum(out * weight), out

    (_, out), gradients = jax.value_and_grad(total, (0, 1, 2), has_aux=True)(query, key, value)
    return out, gradients


def shared(mask, options, devices, implementation):
    """The same of devices that share the sequences, in the order in which they do."""
    causal = mask.causal

    with jax.set_mesh(mesh.make_mesh(mesh.MeshConfig(1, context=devices), jax.devices()[:devices])):

        def there(x):
            return balance(x, AXES[: x.ndim]) if causal else mesh.place(x, AXES[: x.ndim])

        def back(x):
            return restore(x, AXES) if causal else x

        @jax.jit
        def compute(segment_ids, *heads):
            """Of [B, H, S, C], whose sequences are to be the second axis where they move."""
            given = [jnp.swapaxes(there(jnp.swapaxes(x, 1, 2)), 1, 2) for x in heads]
            ids = None if segment_ids is None else there(segment_ids)
            inner = Mask(ids, causal=causal, window=mask.window)
            out, gradients = run(*given, inner, options, implementation)
            return jax.tree.map(
                lambda x: jnp.swapaxes(back(jnp.swapaxes(x, 1, 2)), 1, 2), (out, gradients)
            )

        return jax.device_get(compute(mask.segment_ids, *arrays()))


@pytest.mark.parametrize(
    ("case", "devices", "implementation"),
    [
        ("causal", 4, "xla"),
        ("causal, documents", 2, "pallas_tpu"),
        ("causal, documents", 4, "xla"),
        ("causal, window, cap", 4, "xla"),
        ("both ways, documents", 4, "xla"),
    ],
)
def test_a_ring_equals_the_reference(case, devices, implementation):
    mask, options = CASES[case]
    expected, expected_gradients = run(*arrays(), mask, options, "reference")
    found, gradients = shared(mask, options, devices, implementation)
    np.testing.assert_allclose(found, expected, rtol=2e-5, atol=2e-5)
    for ours, theirs in zip(gradients, expected_gradients, strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=2e-5, atol=5e-5)


@pytest.mark.parametrize("devices", [2, 4])
def test_every_device_has_as_much_of_a_causal_mask_to_do(devices):
    """Pairs of positions that attend, counted by the positions that each device has."""
    with jax.set_mesh(mesh.make_mesh(mesh.MeshConfig(1, context=devices), jax.devices()[:devices])):
        positions = balance(jnp.arange(S)[None], (None, "sequence"))
        shards = [np.asarray(shard.data)[0] for shard in positions.addressable_shards]
    assert len({int(np.sum(own + 1)) for own in shards}) == 1
    np.testing.assert_array_equal(np.sort(np.concatenate(shards)), np.arange(S))
