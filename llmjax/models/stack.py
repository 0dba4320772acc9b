"""Runs a block over the layers of a model."""

from collections.abc import Callable
from typing import Any

import jax

from llmjax import tree


def run_layers(
    block: Callable, x: jax.Array, layers: Any, *, scan: bool = True
) -> tuple[jax.Array, Any]:
    """Applies `block(x, layer) -> (x, out)` for each layer in turn.

    Args:
        block: one layer.
        x: activations [B, S, D].
        layers: a tree of arrays [L, ...], or a list of L trees.
        scan: one compiled loop over the layers; otherwise, and for a list, they are unrolled.

    Returns:
        The last activations, and the layers' outputs: stacked after a scan, else a list.
    """
    if scan and not isinstance(layers, list):
        return jax.lax.scan(block, x, layers)
    outs = []
    for layer in layers if isinstance(layers, list) else tree.unstack(layers):
        x, out = block(x, layer)
        outs.append(out)
    return x, outs
