"""Computing activations again in the backward pass, to hold fewer of them in between."""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from llmjax import mesh
from llmjax.models.config import ModelConfig


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
        x = jax.tree.map(lambda leaf: leaf + zero.astype(leaf.dtype), x)
        return jax.vjp(lambda x, rest: function(x, *rest), x, rest)[1](cotangent)

    wrapped.defvjp(forward, backward)
    return lambda x, *rest: wrapped(x, rest)


def _corner(x: jax.Array) -> jax.Array:
    """The first element; of an array that is split over devices, everywhere."""
    return jnp.squeeze(mesh.sharded(x.at[(jnp.zeros((), jnp.int32),) * x.ndim].get, ())())


def at_level(config: ModelConfig, level: str) -> Callable[[Callable], Callable]:
    """`recompute` where the model's `remat` is this level; else functions are left as they are."""
    return recompute if config.remat == level else lambda function: function
