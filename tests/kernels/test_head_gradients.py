"""When the gradients of a head are computed."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from llmjax.kernels.linear_cross_entropy import linear_cross_entropy


@pytest.mark.parametrize("implementation", ["pallas_tpu", "pallas_gpu"])
def test_the_gradient_of_the_hidden_states_waits_for_the_weights(implementation):
    """Or compilers keep the gathered weight until the layers have run backward."""
    random = np.random.default_rng(0)
    hidden, weight = (jnp.asarray(random.normal(size=size)) for size in ((2, 6, 8), (40, 8)))
    targets = jnp.asarray(random.integers(0, 40, (2, 6)))

    def total(hidden, weight):
        return linear_cross_entropy(hidden, weight, targets, implementation=implementation)[0]

    traced = jax.make_jaxpr(jax.grad(total, argnums=(0, 1)))(hidden, weight).jaxpr
    source = {out: eqn for eqn in traced.eqns for out in eqn.outvars}
    ends = []
    for out in traced.outvars:
        while source[out].primitive.name in ("convert_element_type", "reshape", "reduce_sum"):
            (out,) = source[out].invars
        ends.append(source[out])
    assert ends[0] is ends[1]
    assert ends[0].primitive.name == "optimization_barrier"
