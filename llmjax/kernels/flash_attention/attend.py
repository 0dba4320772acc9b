"""What implementations of attention have in common: two functions, and the gradient made of them."""

import functools
from typing import Protocol

import jax

from llmjax.kernels.dropout import Draw
from llmjax.kernels.flash_attention.mask import Mask
from llmjax.kernels.flash_attention.tiles import Gradients, Options, Result


class Implementation(Protocol):
    """A module, or whatever else has these."""

    def forward(
        self,
        query: jax.Array,
        key: jax.Array,
        value: jax.Array,
        mask: Mask,
        draw: Draw,
        options: Options,
    ) -> Result:
        """As `api.flash_attention_with_log_sum`."""
        ...

    def backward(
        self,
        query: jax.Array,
        key: jax.Array,
        value: jax.Array,
        mask: Mask,
        draw: Draw,
        result: Result,
        grads: Result,
        options: Options,
    ) -> Gradients:
        """From the gradients by both results.

        If the results are those of more keys than are given, so are the gradients by the queries:
        their sum over all parts of the keys is that by all of them.
        """
        ...


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 6))
def attention(implementation: Implementation, query, key, value, mask, draw, options) -> Result:
    """Attention with its gradient."""
    return implementation.forward(query, key, value, mask, draw, options)


def _forward(implementation, query, key, value, mask, draw, options):
    arrays = (query, key, value, mask, draw)
    result = implementation.forward(*arrays, options)
    return result, (arrays, result)


def _backward(implementation, options, kept, grads):
    arrays, result = kept
    return *implementation.backward(*arrays, result, grads, options), None, None


attention.defvjp(_forward, _backward)
