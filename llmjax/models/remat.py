"""Computing activations again in the backward pass, to hold fewer of them in between."""

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
    """`function(x, *rest)`, of which the backward pass keeps the arguments alone.

    As `jax.checkpoint`, whose barriers XLA:CPU removes: it then finds the second computation
    equal to the first and keeps every value after all, or does it long before it is needed. On
    one device x waits for the cotangent by way of a zero, which no compiler can take out.

    Args:
        function: pure; x is a tree of activations, the rest anything. Products whose results only
            enter linearly are not done again: nobody needs them.
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
    """(x, rest), not known before the cotangent is: a zero that comes from it is added."""
    first = jax.tree.leaves(cotangent)[0]
    zero = 0 * jnp.squeeze(first[(slice(0, 1),) * first.ndim])

    def wait(leaf, limit=math.inf):
        waits = jnp.issubdtype(leaf.dtype, jnp.floating) and leaf.size <= limit
        return leaf + zero.astype(leaf.dtype) if waits else leaf

    x, rest = kept
    # Scales and biases too: one that both passes broadcast is stored as large as what it scales.
    # A whole weight would be copied.
    return jax.tree.map(wait, x), jax.tree.map(functools.partial(wait, limit=VECTOR), rest)


def at_level(config: ModelConfig, level: str) -> Callable[[Callable], Callable]:
    """`recompute` where the model's `remat` is this level; else functions are left as they are."""
    return recompute if config.remat == level else lambda function: function
