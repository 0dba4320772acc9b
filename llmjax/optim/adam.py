"""Adam (Kingma & Ba 2015), written so that a step stores nothing except its moments."""

from typing import Any

import jax
import jax.numpy as jnp
import optax


def scale_by_adam(beta1: float, beta2: float, epsilon: float) -> optax.GradientTransformation:
    """Replaces gradients by m̂ / (√v̂ + ε), algorithm 1.

    Like `optax.scale_by_adam`, with the same state, but bias corrections are multiplied as factors:
    XLA stores a quotient with two uses, and a corrected moment is as large as the parameters.
    Moments are float32 or wider: in bfloat16, a decay of 0.999 would round to 1.
    """

    def init(params):
        means, squares = zeros(params), zeros(params)
        return optax.ScaleByAdamState(jnp.zeros((), jnp.int32), means, squares)

    def update(updates, state, params=None):
        del params
        steps = optax.safe_increment(state.count)
        updates = jax.tree.map(lambda g, m: g.astype(m.dtype), updates, state.mu)
        mean = jax.tree.map(lambda m, g: beta1 * m + (1 - beta1) * g, state.mu, updates)
        square = jax.tree.map(lambda v, g: beta2 * v + (1 - beta2) * g * g, state.nu, updates)
        grow, grow_square = 1 / (1 - beta1**steps), 1 / (1 - beta2**steps)

        def scale(m, v):
            denominator = jnp.sqrt(grow_square.astype(v.dtype) * v) + epsilon
            return grow.astype(m.dtype) * m / denominator

        return jax.tree.map(scale, mean, square), optax.ScaleByAdamState(steps, mean, square)

    return optax.GradientTransformation(init, update)


def zeros(params: Any) -> Any:
    """Zeros with the parameters' shapes and shardings, float32 or wider."""

    def one(param: jax.Array) -> jax.Array:
        return jnp.zeros_like(param, jnp.promote_types(param.dtype, jnp.float32))

    return jax.tree.map(one, params)
