"""Exact sums of a loss and its metrics over a finite set of batches."""

import collections
import functools
from collections.abc import Iterable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from llmjax import mesh
from llmjax.objectives import Batch, Loss, PreparedLoss


def sum_up(loss: Loss, params: Any, batches: Iterable[Mapping[str, np.ndarray]]) -> dict[str, Any]:
    """Sums over batches in float64, so that their order and number do not matter.

    Masks and replacements are drawn from the index of each batch: the same batch gets the same
    masks at every call, and different batches get different ones.

    Args:
        loss: the objective, called without a key (no dropout). Pass the same function every time,
            since each function is compiled once.
        params: the model's parameters.
        batches: host batches, int32 [B/processes, ...].

    Returns:
        The loss's "sum" and "weight" and the sums of its metrics by name, as floats or float64
        arrays. Without batches, "sum" and "weight" are 0.
    """
    totals: dict[str, Any] = {"sum": 0.0, "weight": 0.0}
    running: collections.deque[dict[str, jax.Array]] = collections.deque()

    def add(sums: dict[str, jax.Array]) -> None:
        for name, value in jax.device_get(sums).items():
            wide = np.asarray(value, np.float64)
            totals[name] = totals.get(name, 0.0) + (wide if wide.ndim else float(wide))

    for number, batch in enumerate(batches):
        running.append(_sums(loss, params, mesh.shard_batch(batch), jnp.uint32(number)))
        if len(running) > 1:  # read one batch late, so that the device does not wait for the host
            add(running.popleft())
    for last in running:
        add(last)
    return totals


def evaluate_means(
    loss: Loss, params: Any, batches: Iterable[Mapping[str, np.ndarray]]
) -> dict[str, float]:
    """A loss and its metrics, each divided by the loss's weight: "validation_loss" and so on.

    Raises:
        ValueError: there is nothing to evaluate.
    """
    totals = sum_up(loss, params, batches)
    weight = totals.pop("weight")
    if not weight:
        raise ValueError("nothing to evaluate: give more examples, or a larger validation_share")
    totals["loss"] = totals.pop("sum")
    return {f"validation_{name}": total / weight for name, total in totals.items()}


@functools.partial(jax.jit, static_argnums=0)
def _sums(loss: Loss, params: Any, batch: Batch, number: jax.Array) -> dict[str, jax.Array]:
    if isinstance(loss, PreparedLoss):
        batch = loss.prepare(batch, jax.random.fold_in(jax.random.key(0), number))
    weighted, metrics = loss(params, batch, None)
    return metrics | {"sum": weighted.sum, "weight": weighted.weight}
