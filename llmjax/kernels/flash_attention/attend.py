"""The interface of attention implementations, and differentiable attention built from it."""

import functools
from collections.abc import Callable
from typing import NamedTuple, Protocol

import jax
import jax.numpy as jnp

from llmjax.kernels.dropout import Draw
from llmjax.kernels.flash_attention.mask import Mask
from llmjax.kernels.flash_attention.tiles import Gradients, Options, Result
from llmjax.parts import on_parts

# Logical axes of queries, and of keys and values.
QUERY = ("batch", "heads", "sequence", None)
KEY = ("batch", "kv_heads", "sequence", None)


class Implementation(Protocol):
    """A module or object with these two functions."""

    def forward(
        self,
        query: jax.Array,
        key: jax.Array,
        value: jax.Array,
        mask: Mask,
        draw: Draw,
        options: Options,
    ) -> Result:
        """Computes `api.flash_attention_with_log_sum`."""
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
        """The gradients of query, key and value, from those of both results.

        `result` may cover more keys than are given. The gradient of the query is then the part due
        to the given keys, and summing it over all parts of the keys gives the whole.
        """
        ...


class OnParts(NamedTuple):
    """Runs an implementation on every device's rows, heads and parts of sequences."""

    implementation: Implementation

    def forward(self, query, key, value, mask: Mask, draw: Draw, options: Options) -> Result:
        """See `Implementation`."""
        run = self._map(self.implementation.forward, mask, draw, options, (QUERY, QUERY[:3]))
        return run(query, key, value)

    def backward(
        self, query, key, value, mask: Mask, draw: Draw, result: Result, grads: Result, options
    ) -> Gradients:
        """See `Implementation`."""
        run = self._map(self.implementation.backward, mask, draw, options, (QUERY, KEY, KEY))
        return run(query, key, value, *result, *grads)

    def _map(self, run: Callable, mask: Mask, draw: Draw, options: Options, out: tuple) -> Callable:
        limits, structure = jax.tree.flatten(jax.tree.map(jnp.asarray, mask))
        by_row = tuple(("batch", "sequence")[: limit.ndim] for limit in limits)

        def local(seeds, heads, *rest):
            mask = jax.tree.unflatten(structure, rest[: len(limits)])
            query, key, value, *more = rest[len(limits) :]
            pairs = zip(more[::2], more[1::2], strict=True)
            return run(query, key, value, mask, Draw(seeds, heads), *pairs, options)

        def everywhere(*arrays):
            more = (QUERY, QUERY[:3], QUERY, QUERY[:3])[: len(arrays) - 3]
            axes = ((None,), ("batch", "kv_heads"), *by_row, QUERY, KEY, KEY, *more)
            mapped = on_parts(local, axes, out, check=not options.interpret)
            return mapped(*draw, *limits, *arrays)

        return everywhere


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 6))
def attention(implementation: Implementation, query, key, value, mask, draw, options) -> Result:
    """Attention by an implementation, differentiable."""
    return implementation.forward(query, key, value, mask, draw, options)


def _forward(implementation, query, key, value, mask, draw, options):
    arrays = (query, key, value, mask, draw)
    result = implementation.forward(*arrays, options)
    return result, (arrays, result)


def _backward(implementation, options, kept, grads):
    arrays, result = kept
    return *implementation.backward(*arrays, result, grads, options), None, None


attention.defvjp(_forward, _backward)
