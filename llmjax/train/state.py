"""Everything that a training step changes."""

from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import struct

from llmjax import spec as specs
from llmjax.train.health import Health


@struct.dataclass
class TrainState:
    """A run between two steps.

    Attributes:
        step: int32 scalar, the steps completed.
        params: the parameters.
        opt_state: the optimizer's.
        key: a typed PRNG key; each step folds its number into it.
        health: by which a step tells whether it is a bad one.
    """

    step: jax.Array
    params: Any
    opt_state: Any
    key: jax.Array
    health: Health = struct.field(default_factory=Health.new)


def init_state(key: jax.Array, spec: Any, optimizer: optax.GradientTransformation) -> TrainState:
    """The state before the first step, in float32, sharded from birth on the current mesh."""

    # All in one program, so that scalars too lie on the whole mesh, as they do after a step: a
    # state that moved with the first step would compile the second one anew.
    @jax.jit
    def make(key: jax.Array) -> TrainState:
        init_key, step_key = jax.random.split(key)
        params = specs.init(init_key, spec)
        return TrainState(jnp.zeros((), jnp.int32), params, optimizer.init(params), step_key)

    return make(key)


def abstract_state(spec: Any, optimizer: optax.GradientTransformation) -> TrainState:
    """The shapes and shardings of `init_state`'s, on the current mesh, which need not be there."""
    key = jax.eval_shape(lambda: jax.random.key(0))
    return jax.eval_shape(lambda key: init_state(key, spec, optimizer), key)
