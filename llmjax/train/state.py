"""Everything that a training step changes."""

from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import struct

from llmjax import spec as specs


@struct.dataclass
class TrainState:
    """A run between two steps.

    Attributes:
        step: int32 scalar, the steps completed.
        params: the parameters.
        opt_state: the optimizer's.
        key: a typed PRNG key; each step folds its number into it.
    """

    step: jax.Array
    params: Any
    opt_state: Any
    key: jax.Array


def init_state(key: jax.Array, spec: Any, optimizer: optax.GradientTransformation) -> TrainState:
    """The state before the first step, in float32, sharded from birth on the current mesh."""
    init_key, step_key = jax.random.split(key)
    params = specs.init(init_key, spec)

    # A program that sees the parameters, so that scalars too lie on the whole mesh, as they do
    # after a step: a state that moved with the first step would compile the second one anew.
    @jax.jit
    def rest(params: Any, key: jax.Array) -> tuple[Any, ...]:
        return jnp.zeros((), jnp.int32), optimizer.init(params), key

    step, opt_state, step_key = rest(params, step_key)
    return TrainState(step, params, opt_state, step_key)
