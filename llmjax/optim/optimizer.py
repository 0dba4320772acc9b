"""Builds optimizers from their configuration and the model's spec."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from llmjax import tree
from llmjax.optim.adam import scale_by_adam
from llmjax.optim.config import NO_DECAY, OptimizerConfig
from llmjax.optim.muon import scale_by_muon
from llmjax.optim.rules import factors, layer_factors
from llmjax.spec import Param, is_param


class LearningRateState(NamedTuple):
    """Steps taken, and the rate of the last one."""

    steps: jax.Array
    learning_rate: jax.Array


def schedule(config: OptimizerConfig, steps: int) -> optax.Schedule:
    """The learning rate at each step of a run of `steps` steps.

    Raises:
        ValueError: the warm-up or the decay does not fit into the run.
    """
    peak, warmup = config.learning_rate, config.warmup_steps
    final = peak * config.final_share
    after = steps - warmup
    decay = config.decay_steps or max(1, steps // 5)
    if config.schedule in ("linear", "cosine", "wsd") and after < 1:
        raise ValueError(
            f"optimizer.warmup_steps={warmup} leaves none of the {steps} steps for the "
            f"{config.schedule} schedule: set it lower, or train longer"
        )
    if config.schedule == "wsd" and decay > after:
        raise ValueError(
            f"optimizer.decay_steps={decay} and warmup_steps={warmup} exceed {steps} steps: "
            "set them lower, or train longer"
        )
    if config.schedule == "inverse_sqrt":
        return lambda step: peak * jnp.minimum(step / warmup, jnp.sqrt(warmup / (step + 1e-9)))
    rest = {
        "constant": lambda: optax.constant_schedule(peak),
        "linear": lambda: optax.linear_schedule(peak, final, after),
        "cosine": lambda: optax.cosine_decay_schedule(peak, after, alpha=config.final_share),
        "wsd": lambda: optax.linear_schedule(peak, final, decay, transition_begin=after - decay),
    }[config.schedule]()
    if not warmup:
        return rest
    return optax.join_schedules([optax.linear_schedule(0.0, peak, warmup), rest], [warmup])


def scale_by_learning_rate(rate: optax.Schedule) -> optax.GradientTransformation:
    """Multiplies by minus the scheduled rate, and keeps the rate in the state for logging."""

    def init(params):
        del params
        return LearningRateState(jnp.zeros((), jnp.int32), jnp.zeros((), jnp.float32))

    def update(updates, state, params=None):
        del params
        now = jnp.asarray(rate(state.steps), jnp.float32)
        updates = jax.tree.map(lambda update: -now.astype(update.dtype) * update, updates)
        return updates, LearningRateState(optax.safe_increment(state.steps), now)

    return optax.GradientTransformation(init, update)


def scale_by_factors(by: Any) -> optax.GradientTransformation:
    """Multiplies each update by its factor, a number or an array that broadcasts to it."""

    def one(update: jax.Array, factor: Any) -> jax.Array:
        return update if np.all(factor == 1) else update * jnp.asarray(factor, update.dtype)

    return optax.stateless(lambda updates, params: jax.tree.map(one, updates, by))


def add_decay(decays: Any) -> optax.GradientTransformation:
    """Adds each parameter, times its decay, to its update."""

    def one(update: jax.Array, param: jax.Array, decay: float) -> jax.Array:
        return update + decay * param if decay else update

    return optax.stateless(lambda updates, params: jax.tree.map(one, updates, params, decays))


def make(config: OptimizerConfig, spec: Any, steps: int) -> optax.GradientTransformation:
    """The optimizer for parameters declared by `spec`, in a run of `steps` steps.

    Args:
        config: optimizer configuration.
        spec: the tree of `Param` of the trained parameters, with None for frozen ones.
        steps: number of steps of the run.

    Raises:
        ValueError: a rule applies to no parameter, or the schedule does not fit into the run.
    """
    adam = scale_by_adam(config.beta1, config.beta2, config.epsilon)
    rates = factors(config.rates, spec, name="optimizer.rates")
    decays = factors(config.decays, spec, name="optimizer.decays", spare=NO_DECAY)
    parts = [optax.clip_by_global_norm(config.clip_norm)] if config.clip_norm else []
    if config.name == "muon":
        kinds = tree.map_with_path(_kind, spec, is_leaf=is_param)
        matrices = jax.tree.map(
            lambda kind, param: param if kind == "muon" else optax.MaskedNode(), kinds, spec
        )
        muon = scale_by_muon(config.momentum, matrices)
        parts.append(optax.partition({"muon": muon, "adam": adam}, kinds))
    else:
        parts.append(adam)
    if config.weight_decay:
        parts.append(add_decay(jax.tree.map(lambda decay: config.weight_decay * decay, decays)))
    if config.layer_decay < 1:
        by_layer = layer_factors(config.layer_decay, spec)
        rates = jax.tree.map(lambda rate, factor: rate * factor, rates, by_layer)
    if config.rates or config.layer_decay < 1:
        parts.append(scale_by_factors(rates))
    return optax.chain(*parts, scale_by_learning_rate(schedule(config, steps)))


def _kind(path: str, param: Param) -> str:
    """Muon updates the matrices of the layers; Adam updates embeddings, heads, norms and biases.

    Adam also updates parameters added to a model, such as low-rank factors.
    """
    inside = "layers" in path.split("/") and param.inputs > 0 and not param.added
    return "muon" if inside else "adam"
