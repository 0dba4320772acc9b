"""The activation whose derivative is written out."""

import jax
import jax.numpy as jnp
import numpy as np

from llmjax.models.mlp import gelu


def test_gelu_and_its_slope_are_those_of_jax():
    x = jnp.linspace(-8.0, 8.0, 801)

    def theirs(x):
        return jax.nn.gelu(x, approximate=False)

    np.testing.assert_array_equal(gelu(x), theirs(x))
    values, slopes = jax.jvp(gelu, (x,), (jnp.ones_like(x),))
    np.testing.assert_allclose(values, theirs(x), rtol=0, atol=2e-7)
    np.testing.assert_allclose(slopes, jax.vmap(jax.grad(theirs))(x), rtol=0, atol=2e-7)
