"""Runs blocks over the layers of a model."""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from llmjax import tree


def run_layers(
    block: Callable,
    x: jax.Array,
    layers: Any,
    *,
    pattern: Sequence[str] = ("global",),
    scan: bool = True,
) -> tuple[jax.Array, Any]:
    """Applies `block(kind, x, layer) -> (x, out)` for each layer in turn.

    Args:
        block: one layer of a kind.
        x: activations [B, S, D].
        layers: a tree of arrays [L, ...], or a list of L trees.
        pattern: the kinds of the first layers, repeated over the others.
        scan: one compiled loop over the layers, whose body is one period of the pattern;
            otherwise, and for a list, they are unrolled.

    Returns:
        The last activations, and the layers' outputs: stacked after a scan, else a list.
    """
    if not scan or isinstance(layers, list):
        return _unrolled(block, x, layers, pattern)
    if len(pattern) == 1:
        return jax.lax.scan(lambda x, layer: block(pattern[0], x, layer), x, layers)

    def period(x, layers):
        x, outs = _unrolled(block, x, layers, pattern)
        return x, _stack(outs)

    count = jax.tree.leaves(layers)[0].shape[0]
    whole = count - count % len(pattern)
    grouped = jax.tree.map(lambda leaf: _group(leaf[:whole], len(pattern)), layers)
    x, outs = jax.lax.scan(period, x, grouped)
    outs = jax.tree.map(lambda leaf: leaf.reshape(whole, *leaf.shape[2:]), outs)
    if whole < count:
        rest = jax.tree.map(lambda leaf: leaf[whole:], layers)
        x, last = _unrolled(block, x, rest, pattern)
        outs = jax.tree.map(lambda *parts: jnp.concatenate(parts), outs, _stack(last))
    return x, outs


def _unrolled(block, x, layers, pattern):
    outs = []
    for index, layer in enumerate(layers if isinstance(layers, list) else tree.unstack(layers)):
        x, out = block(pattern[index % len(pattern)], x, layer)
        outs.append(out)
    return x, outs


def _group(leaf, period):
    """[L, ...] to [L/p, p, ...]; the layer axis is never sharded here, so shardings are kept."""
    return leaf.reshape(-1, period, *leaf.shape[1:])


def _stack(outs):
    return jax.tree.map(lambda *parts: jnp.stack(parts), *outs)
