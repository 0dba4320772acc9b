"""The training step, for any objective."""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax

from llmjax import mesh, tree
from llmjax.objectives import Batch, Loss, MeasuredLoss, Metrics, PreparedLoss, Weighted
from llmjax.train import health, zero
from llmjax.train.state import TrainState

Step = Callable[[TrainState, Batch], tuple[TrainState, Metrics]]


def make_step(
    loss: Loss,
    optimizer: optax.GradientTransformation,
    *,
    accumulate: int = 1,
    spikes: health.SpikeConfig | None = None,
    norms: bool = False,
    sharding: zero.Sharding | None = None,
) -> Step:
    """Makes the jitted step (state, batch) -> (next state, metrics), which donates the state.

    The gradient of Σ sums / Σ weights over the whole batch with respect to the trained parameters
    does not depend on the number of micro-batches or devices. A step is skipped, leaving parameters
    and optimizer unchanged, if its loss or gradient is non-finite or a spike, or if its batch has
    no target. A loss that needs the whole batch gets it before it is split, with the step's key
    (`objectives.PreparedLoss`), or is given sums over its parts (`objectives.MeasuredLoss`).

    Args:
        loss: the objective.
        optimizer: from `optim.make`.
        accumulate: number of micro-batches into which a batch is split, to save memory.
        spikes: which steps are skipped as spikes; None for none.
        norms: whether to report norms of gradient and update for each group of parameters.
        sharding: the ZeRO stage on the mesh; None for stage 3.

    Returns:
        The step. Its metrics are scalars: loss (mean), tokens (the weight), inputs (tokens that
        the model reads, without padding), grad_norm (before clipping), param_norm (after the
        update), learning_rate, skipped (1 if the update was), spike (1 if it was one),
        skipped_total (since the run began), and the objective's own sums divided by the weight.
        With `norms` also grad_norm/GROUP and update_norm/GROUP: embedding, layers/attention, ….
    """

    @functools.partial(jax.jit, donate_argnums=0, compiler_options=_compiler_options())
    def step(state: TrainState, batch: Batch) -> tuple[TrainState, Metrics]:
        key = jax.random.fold_in(state.key, state.step)
        read = _inputs(batch)
        if isinstance(loss, PreparedLoss):
            batch = loss.prepare(batch, key)
        total, extra, grads = _gradient(loss, sharding, state, batch, key, accumulate)
        advanced, metrics = _advance(state, optimizer, spikes, total, grads, norms=norms)
        extra = {name: value / _divisor(total) for name, value in extra.items()}
        return advanced, extra | metrics | {"inputs": read}

    return step


def _advance(
    state: TrainState,
    optimizer: optax.GradientTransformation,
    spikes: health.SpikeConfig | None,
    total: Weighted,
    grads: Any,
    *,
    norms: bool,
) -> tuple[TrainState, Metrics]:
    """The state after a step by the gradient of Σ sums, and the step's metrics."""
    weight = _divisor(total)
    # XLA recomputes a product at each use, whereas it would store a quotient.
    grads = jax.tree.map(lambda grad: grad * (1 / weight).astype(grad.dtype), grads)
    norm, mean = optax.tree.norm(grads), total.sum / weight
    usable = jnp.isfinite(total.sum) & jnp.isfinite(norm) & (total.weight > 0)
    spike, after = health.judge(state.health, spikes, mean, norm, usable)
    sound = usable & ~spike
    updates, opt_state = optimizer.update(grads, state.opt_state, state.params)

    def keep(condition, new, old):
        return jax.tree.map(lambda a, b: jnp.where(condition, a, b), new, old)

    params = keep(sound, optax.apply_updates(state.params, updates), state.params)
    # Reading all new parameters before the moments change lets XLA update these in place.
    param_norm = optax.tree.norm(params)
    metrics = {
        "loss": mean,
        "tokens": total.weight,
        "grad_norm": norm,
        "param_norm": param_norm,
        "learning_rate": optax.tree.get(opt_state, "learning_rate"),
        "skipped": 1 - sound.astype(jnp.int32),
        "spike": spike.astype(jnp.int32),
        "skipped_total": after.skipped,
    }
    if norms:
        metrics |= _group_norms("grad_norm", grads) | _group_norms("update_norm", updates)
    advanced = dataclasses.replace(
        state,
        step=state.step + 1,
        params=params,
        opt_state=keep(sound & jnp.isfinite(param_norm), opt_state, state.opt_state),
        health=after,
    )
    return advanced, metrics


def _divisor(total: Weighted) -> jax.Array:
    """The weight, or 1 for a batch without a target."""
    return jnp.where(total.weight > 0, total.weight, 1.0)


def _group_norms(name: str, values: Any) -> Metrics:
    """The norm of each group of parameters; within layers, each module is a group."""
    groups: dict[str, list[jax.Array]] = {}
    for path, value in zip(tree.paths(values), jax.tree.leaves(values), strict=True):
        parts = [part for part in path.split("/") if not part.isdecimal()]
        depth = parts.index("layers") + 2 if "layers" in parts else max(len(parts) - 1, 1)
        groups.setdefault("/".join(parts[:depth]), []).append(value)
    return {f"{name}/{group}": optax.tree.norm(leaves) for group, leaves in groups.items()}


def _inputs(batch: Batch) -> jax.Array:
    """Tokens of a batch that are not padding, float32."""
    segment_ids = batch.get("segment_ids")
    if segment_ids is None:
        return jnp.float32(batch["tokens"].size)
    return jnp.sum(segment_ids != 0, dtype=jnp.float32)


def _compiler_options() -> dict[str, str]:
    """Compiler options for the current mesh's devices."""
    if mesh.platform() != "cpu":
        return {}
    # LLVM prefers half the width of AVX-512 by default: 5 % of a step.
    return {"xla_cpu_prefer_vector_width": "512"}


def _gradient(loss, sharding, state, batch, key, accumulate):
    """(Weighted, metrics, gradient of the sum), summed over micro-batches."""
    if accumulate > 1:
        batch = {name: _cut(name, rows, accumulate) for name, rows in batch.items()}
        key = jax.random.split(key, accumulate)
        if isinstance(loss, MeasuredLoss):
            loss = loss.given(_added(functools.partial(loss.measure, state.all_params), batch))

    held = None if sharding is None else sharding.hold(state.frozen)

    def scalar(params, batch, key):
        whole = dataclasses.replace(state, params=params).all_params
        weighted, metrics = loss(zero.replaced(whole, held), batch, key)
        return weighted.sum, (weighted, metrics)

    value_and_grad, finish = zero.value_and_grad(scalar, sharding, state.params, accumulate)

    def one(inputs):
        (_, (weighted, metrics)), found = value_and_grad(*inputs)
        return weighted, metrics, found

    weighted, metrics, found = one((batch, key)) if accumulate == 1 else _added(one, (batch, key))
    return weighted, metrics, finish(found)


def _added(function: Callable, parts: Any) -> Any:
    """Σ function(part) over the first axis of a tree of arrays, one part after the other."""

    def add(total, part):
        return jax.tree.map(jnp.add, total, function(part)), None

    first, rest = (jax.tree.map(lambda x, at=at: x[at], parts) for at in (0, slice(1, None)))
    return jax.lax.scan(add, function(first), rest)[0]


def _cut(name: str, rows: jax.Array, parts: int) -> jax.Array:
    """[B, ...] to [parts, B/parts, ...], with every part split over all devices.

    Part i takes rows i, i + parts, …: a reshape that keeps the sharding of the rows, so it needs no
    communication.
    """
    if rows.shape[0] % parts:
        raise ValueError(f"{name}: {rows.shape[0]} rows do not divide into {parts} micro-batches")
    split = mesh.sharded(jnp.reshape, ("batch", None, "sequence")[: rows.ndim + 1])
    return jnp.swapaxes(split(rows, (rows.shape[0] // parts, parts, *rows.shape[1:])), 0, 1)
