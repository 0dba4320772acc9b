"""A state begins with the parameters that it is given, in a precision that can learn."""

import jax
import jax.numpy as jnp
import optax

from llmjax.train import start_state


def test_what_trains_is_float32_and_the_rest_stays():
    """At 1.0 the next bfloat16 number is 0.8 % away, so that small updates would change nothing."""
    values = jnp.arange(4) / 3 + 1
    dtypes = {"new": jnp.float32, "half": jnp.bfloat16, "short": jnp.float16, "base": jnp.bfloat16}
    params = {name: values.astype(dtype) for name, dtype in dtypes.items()}
    kept = jax.device_get(params)
    optimizer = optax.sgd(1e-4)
    state = start_state(jax.random.key(0), params, optimizer, lambda path, _: path != "base")
    assert state.frozen["base"].dtype == jnp.bfloat16
    for name in ("new", "half", "short"):
        assert state.params[name].dtype == jnp.float32
        assert (jax.device_get(state.params[name]) == kept[name]).all()
    slopes = jax.tree.map(jnp.ones_like, state.params)
    updates, _ = optimizer.update(slopes, state.opt_state, state.params)
    after = optax.apply_updates(state.params, updates)
    assert (jax.device_get(after["half"]) < kept["half"]).all()
