"""Rematerialization: recomputing activations in the backward pass, to store fewer of them."""

import functools
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from llmjax import mesh
from llmjax.models.config import ModelConfig

VECTOR = 1 << 15  # elements of the longest scale or bias; weights have more


def recompute(function: Callable) -> Callable:
    """`function(x, *rest)`, for which the backward pass only keeps the arguments.

    XLA:CPU removes the barriers of `jax.checkpoint`: it then merges the second computation with the
    first and keeps every value after all, or runs it long before it is needed. On one device this
    version therefore makes x depend on the cotangent through an added zero, which no compiler can
    remove.

    Args:
        function: pure; x is a tree of activations, the rest anything. Products whose results only
            enter linearly are not recomputed, as no gradient needs them.
    """

    @jax.custom_vjp
    def wrapped(x, rest):
        return function(x, *rest)

    def forward(x, rest):
        return function(x, *rest), (x, rest)

    def backward(kept, cotangent):
        if mesh.devices() == 1:
            x, rest = _wait(kept, cotangent)
        else:
            (x, rest), cotangent = jax.lax.optimization_barrier((kept, cotangent))
        return jax.vjp(lambda x, rest: function(x, *rest), x, rest)[1](cotangent)

    wrapped.defvjp(forward, backward)
    return lambda x, *rest: wrapped(x, rest)


def _wait(kept: tuple, cotangent: Any) -> tuple:
    """Makes (x, rest) depend on the cotangent by adding a zero computed from it."""
    first = jax.tree.leaves(cotangent)[0]
    zero = 0 * jnp.squeeze(first[(slice(0, 1),) * first.ndim])

    def wait(leaf, limit=math.inf):
        waits = jnp.issubdtype(leaf.dtype, jnp.floating) and leaf.size <= limit
        return leaf + zero.astype(leaf.dtype) if waits else leaf

    x, rest = kept
    # Scales and biases wait too: XLA stores one that both passes broadcast at its broadcast size.
    # Weights do not, as the addition would copy them.
    return jax.tree.map(wait, x), jax.tree.map(functools.partial(wait, limit=VECTOR), rest)


def at_level(config: ModelConfig, level: str) -> Callable[[Callable], Callable]:
    """`recompute` if the model's `remat` is this level; otherwise the identity."""
    return recompute if config.remat == level else lambda function: function
