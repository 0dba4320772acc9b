"""Tokens travel to the devices that have their experts, and back."""

import jax
import jax.numpy as jnp
import numpy as np

from llmjax import mesh
from llmjax.models import dispatch


def test_what_is_exchanged_arrives_in_order_and_goes_back():
    """Four devices send each other what a table says; sent back, all is as it was."""
    random = np.random.default_rng(4)
    sizes = random.integers(0, 4, (4, 4), dtype=np.int32)
    rows = np.zeros((4, 16, 2), np.float32)
    sent = {}
    for source in range(4):
        for target in range(4):
            count, at = sizes[source, target], sizes[source, :target].sum()
            sent[source, target] = 1 + random.random((count, 2), np.float32)
            rows[source, at : at + count] = sent[source, target]
    with jax.set_mesh(mesh.make_mesh(mesh.MeshConfig(expert=4), jax.devices()[:4])):

        @jax.jit
        @jax.shard_map(in_specs=(jax.P("expert"), jax.P()), out_specs=jax.P("expert"))
        def there_and_back(rows, sizes):
            got = dispatch.exchange(rows[0], sizes, 16)
            return got[None], dispatch.exchange(got, sizes.T, 16)[None]

        placed = jax.device_put(rows, jax.P("expert"))
        got, back = jax.device_get(there_and_back(placed, jnp.asarray(sizes)))
    for target in range(4):
        arrived = np.concatenate([sent[source, target] for source in range(4)])
        np.testing.assert_array_equal(got[target, : len(arrived)], arrived)
        assert not np.any(got[target, len(arrived) :])
    np.testing.assert_array_equal(back, rows)
