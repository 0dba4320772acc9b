"""Runs a block over the layers of a model."""

from collections.abc import Callable
from typing import Any

import jax

from llmjax import tree

POLICIES = {
    "none": None,
    "dots": jax.checkpoint_policies.dots_with_no_batch_dims_saveable,
    "full": jax.checkpoint_policies.nothing_saveable,
}


def run_layers(
    block: Callable, x: jax.Array, layers: Any, *, remat: str = "none", scan: bool = True
) -> tuple[jax.Array, Any]:
    """Applies `block(x, layer) -> (x, out)` for each layer in turn.

    Args:
        block: one layer.
        x: activations [B, S, D].
        layers: a tree of arrays [L, ...], or a list of L trees.
        remat: which activations the backward pass computes again, a key of `POLICIES`.
        scan: one compiled loop over the layers; otherwise, and for a list, they are unrolled.

    Returns:
        The last activations, and the layers' outputs: stacked after a scan, else a list.
    """
    if remat != "none":
        # Within a scan the loop itself keeps the compiler from merging the copies again.
        block = jax.checkpoint(block, policy=POLICIES[remat], prevent_cse=not scan)
    if scan and not isinstance(layers, list):
        return jax.lax.scan(block, x, layers)
    outs = []
    for layer in layers if isinstance(layers, list) else tree.unstack(layers):
        x, out = block(x, layer)
        outs.append(out)
    return x, outs
