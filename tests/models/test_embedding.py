"""Looking up embeddings: what many tokens give to one row is not lost."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from llmjax import mesh
from llmjax.models.embedding import look_up
from llmjax.weights import Held

AXES = ("batch", "sequence", None)


def test_gradients_add_up_in_the_precision_of_the_table():
    """In bfloat16, where 256 + 1 is 256, a row of 4096 tokens would get a sixteenth of its sum."""
    table = jnp.ones((3, 8), jnp.float32)
    rows = jnp.ones((2, 2048), jnp.int32)

    def total(table):
        found = look_up(table, rows, jnp.dtype("bfloat16"), ("vocab", None), AXES)
        assert found.dtype == jnp.bfloat16
        return jnp.sum(found.astype(jnp.float32))

    grad = jax.jit(jax.grad(total))(table)
    assert grad.dtype == jnp.float32
    np.testing.assert_array_equal(grad, np.array([0.0, 4096.0, 0.0])[:, None] * np.ones(8))


@pytest.mark.parametrize("axis", ["fsdp", "tensor", "context"])
def test_replicas_keep_their_terms_of_the_gradient(axis):
    """Terms that are not summed yet add up to the gradient."""
    random = np.random.RandomState(0)
    rows, weights = random.randint(0, 6, (4, 8)).astype(np.int32), random.randn(4, 8, 4)
    expected = np.zeros((6, 4))
    np.add.at(expected, rows, weights)
    with jax.set_mesh(mesh.make_mesh(mesh.MeshConfig(data=2, **{axis: 2}), jax.devices()[:4])):
        placed = mesh.shard_batch({"rows": rows, "weights": weights.astype(np.float32)})
        split = mesh.place(jnp.ones((6, 4)), ("vocab", "outer_embed"))
        terms = jnp.zeros((2, 6, 4), out_sharding=jax.P("data", *split.sharding.spec))

        @jax.jit
        def gradient(split, terms):
            def of_terms(terms):
                table = Held(split, terms=terms)
                found = look_up(table, placed["rows"], jnp.float32, ("vocab", None), AXES)
                return jnp.sum(found * placed["weights"])

            return jax.grad(of_terms)(terms)

        found = gradient(split, terms)
        assert found.sharding.spec == terms.sharding.spec
    np.testing.assert_allclose(np.asarray(found).sum(axis=0), expected, atol=1e-5)
