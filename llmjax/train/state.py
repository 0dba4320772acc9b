"""The training state: everything that a training step changes."""

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
    """The state of a run between two steps.

    Attributes:
        step: int32 scalar, the number of completed steps.
        params: the trained parameters, with None in place of frozen ones.
        opt_state: the optimizer's state.
        key: a typed PRNG key; each step folds its number into it.
        health: statistics by which a step detects spikes.
        frozen: the frozen parameters (`tree.partition`); None if all are trained.
    """

    step: jax.Array
    params: Any
    opt_state: Any
    key: jax.Array
    health: Health = struct.field(default_factory=Health.new)
    frozen: Any = None

    @property
    def all_params(self) -> Any:
        """The trained and the frozen parameters."""
        return self.params if self.frozen is None else tree.combine(self.params, self.frozen)


def init_state(key: jax.Array, spec: Any, optimizer: optax.GradientTransformation) -> TrainState:
    """The state before the first step, in float32, created sharded on the current mesh."""

    # A single program, so that scalars too are on the whole mesh, as after a step: if the first
    # step changed the state's sharding, the second step would recompile.
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
    """The state before the first step for existing parameters, which are donated.

    Trained parameters become float32: an update at a usual rate is less than half the distance
    between two bfloat16 numbers and would be lost, and a restored state is float32 as well. Frozen
    ones keep their precision.

    Args:
        key: a typed PRNG key for the steps.
        params: the parameters.
        optimizer: made for the trained ones.
        trained: selects the trained ones by path; None for all.
    """
    frozen = None
    if trained is not None:
        params, frozen = tree.partition(params, trained)
    params = jax.tree.map(_widened, params)
    begin = jax.jit(_begin, static_argnames="optimizer", donate_argnums=0)
    return dataclasses.replace(begin(params, key, optimizer=optimizer), frozen=frozen)


def _widened(param: jax.Array) -> jax.Array:
    narrow = param.dtype in (jnp.bfloat16, jnp.float16)
    return param.astype(jnp.float32) if narrow else param


def _begin(params: Any, key: jax.Array, optimizer: optax.GradientTransformation) -> TrainState:
    return TrainState(jnp.zeros((), jnp.int32), params, optimizer.init(params), key)


def abstract_state(spec: Any, optimizer: optax.GradientTransformation) -> TrainState:
    """The shapes and shardings of `init_state` on the current mesh, which may be abstract."""
    key = jax.eval_shape(lambda: jax.random.key(0))
    return jax.eval_shape(lambda key: init_state(key, spec, optimizer), key)
