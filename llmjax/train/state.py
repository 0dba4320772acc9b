"""Everything that a training step changes."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import struct

from llmjax import spec as specs
from llmjax import tree
from llmjax.train.health import Health


@struct.dataclass
class TrainState:
    """A run between two steps.

    Attributes:
        step: int32 scalar, the steps completed.
        params: the parameters that are trained; None in place of those that are not.
        opt_state: the optimizer's.
        key: a typed PRNG key; each step folds its number into it.
        health: by which a step tells whether it is a bad one.
        frozen: the other half of the parameters (`tree.partition`); None: all are trained.
    """

    step: jax.Array
    params: Any
    opt_state: Any
    key: jax.Array
    health: Health = struct.field(default_factory=Health.new)
    frozen: Any = None

    @property
    def all_params(self) -> Any:
        """Those that are trained and those that are not."""
        return self.params if self.frozen is None else tree.combine(self.params, self.frozen)


def init_state(key: jax.Array, spec: Any, optimizer: optax.GradientTransformation) -> TrainState:
    """The state before the first step, in float32, sharded from birth on the current mesh."""

    # All in one program, so that scalars too lie on the whole mesh, as they do after a step: a
    # state that moved with the first step would compile the second one anew.
    @jax.jit
    def make(key: jax.Array) -> TrainState:
        init_key, step_key = jax.random.split(key)
        return _begin(specs.init(init_key, spec), step_key, optimizer)

    return make(key)


def start_state(
    key: jax.Array,
    params: Any,
    optimizer: optax.GradientTransformation,
    trained: tree.Predicate | None = None,
) -> TrainState:
    """The state before the first step of a model that is there already; `params` is used up.

    Args:
        key: a typed PRNG key, of the steps.
        params: the parameters.
        optimizer: made for those of them that are trained.
        trained: picks these by path; None: all are.
    """
    frozen = None
    if trained is not None:
        params, frozen = tree.partition(params, trained)
    begin = jax.jit(_begin, static_argnames="optimizer", donate_argnums=0)
    return dataclasses.replace(begin(params, key, optimizer=optimizer), frozen=frozen)


def _begin(params: Any, key: jax.Array, optimizer: optax.GradientTransformation) -> TrainState:
    return TrainState(jnp.zeros((), jnp.int32), params, optimizer.init(params), key)


def abstract_state(spec: Any, optimizer: optax.GradientTransformation) -> TrainState:
    """The shapes and shardings of `init_state`'s, on the current mesh, which need not be there."""
    key = jax.eval_shape(lambda: jax.random.key(0))
    return jax.eval_shape(lambda key: init_state(key, spec, optimizer), key)
