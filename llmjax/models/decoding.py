"""Parameters laid out for decoding, which multiplies weights by only a few rows at a time."""

import functools
import re
from typing import Any

import jax
import jax.numpy as jnp

from llmjax import mesh, tree, weights
from llmjax.models import adapter, blocks, prefix
from llmjax.models.config import ModelConfig
from llmjax.spec import is_param

ROUTER = "experts/router"  # always multiplied in at least float32


def for_decoding(params: Any, config: ModelConfig) -> Any:
    """Lays out parameters for `apply` with a cache, once for all tokens.

    Layers become a list, and prefixes move into their layers. Matrices are cast to the compute
    precision and, on CPUs, `Transposed`. Parameters already laid out are returned unchanged.
    """
    params = prefix.unfolded(params, config)
    if _is_ready(params["layers"], config):
        return params
    ready = params | {"layers": _lay_out(params["layers"], config)}
    for name in ("embedding", "positions", "head"):
        if isinstance(params.get(name), jax.Array):
            ready[name] = jnp.asarray(params[name], config.compute_dtype)
    if isinstance(ready.get("head"), jax.Array) and _on_cpu():
        ready["head"] = weights.Transposed(ready["head"], axes=(0, 1))  # [V, D] as it is
    return ready


def _is_ready(layers: Any, config: ModelConfig) -> bool:
    """Whether layers are laid out already; models trained unrolled have a list of layers too."""
    if not isinstance(layers, list):
        return False
    if _on_cpu():
        return any(map(_is_transposed, jax.tree.leaves(layers, is_leaf=_is_transposed)))
    return jax.tree.leaves(layers[0]["attention"]["query"])[0].dtype == config.compute_dtype


def _is_transposed(leaf: Any) -> bool:
    return isinstance(leaf, weights.Transposed)


@functools.partial(jax.jit, static_argnames="config")
def _lay_out(layers: Any, config: ModelConfig) -> list[Any]:
    declared = blocks.block_spec(config, first=True)
    inputs = dict(zip(tree.paths(declared, is_leaf=is_param), _inputs(declared), strict=True))
    inputs |= {f"{place}/{name}": 1 for place in adapter.PLACES for name in ("down", "up")}

    def one(path, leaf):
        # The base weight under adapters is laid out as the bare weight is.
        name = re.sub(r"(/base)+$", "", path)
        if not inputs.get(name) or not isinstance(leaf, jax.Array) or name == ROUTER:
            return leaf
        leaf = leaf.astype(config.compute_dtype)
        # Experts are read one by one, untransposed.
        if not _on_cpu() or name.startswith("experts/"):
            return leaf
        return weights.transpose(leaf, tuple(range(inputs[name])))

    unstacked = layers if isinstance(layers, list) else tree.unstack(layers)
    return [tree.map_with_path(one, layer) for layer in unstacked]


def _inputs(declared: Any) -> list[int]:
    return [param.inputs for param in jax.tree.leaves(declared, is_leaf=is_param)]


def _on_cpu() -> bool:
    return mesh.platform() == "cpu"
