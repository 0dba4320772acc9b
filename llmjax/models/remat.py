"""Computing activations again in the backward pass, to hold fewer of them in between."""

import functools
import math
from collections.abc import Callable

import jax
import jax.numpy as jnp

from llmjax import mesh
from llmjax.models.config import ModelConfig

VECTOR = 1 << 15  # elements of the longest scale or bias; weights have more


def recompute(function: Callable) -> Callable:
    """`function(x, *rest)`, of which the backward pass keeps the arguments alone.

    As `jax.checkpoint`, whose barriers XLA:CPU removes: it then finds the second computation
    equal to the first and keeps every value after all, or does it long before it is needed. Here
    x waits for the cotangent by way of a zero.

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
        x, rest = kept
        zero = 0 * _corner(jax.tree.leaves(cotangent)[0])

        def wait(leaf, limit=math.inf):
            small = jnp.issubdtype(leaf.dtype, jnp.floating) and leaf.size <= limit
            return leaf + zero.astype(leaf.dtype) if small else leaf

        x = jax.tree.map(wait, x)
        # Scales and biases too: one that both passes broadcast is stored as large as what it
        # scales. A whole weight would be copied.
        rest = jax.tree.map(functools.partial(wait, limit=VECTOR), rest)
        return jax.vjp(lambda x, rest: function(x, *rest), x, rest)[1](cotangent)

    wrapped.defvjp(forward, backward)
    return lambda x, *rest: wrapped(x, rest)


def _corner(x: jax.Array) -> jax.Array:
    """The first element; of an array that is split over devices, everywhere."""
    return jnp.squeeze(mesh.sharded(x.at[(jnp.zeros((), jnp.int32),) * x.ndim].get, ())())


def at_level(config: ModelConfig, level: str) -> Callable[[Callable], Callable]:
    """`recompute` where the model's `remat` is this level; else functions are left as they are."""
    return recompute if config.remat == level else lambda function: function
