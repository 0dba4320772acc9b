"""Looking up embeddings: what many tokens give to one row is not lost."""

import jax
import jax.numpy as jnp
import numpy as np

from llmjax.models.embedding import look_up

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
