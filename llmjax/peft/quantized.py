"""Base weights in 8 or 4 bits; with low-rank corrections, QLoRA (Dettmers et al. 2023)."""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any, Literal, get_args

import jax
import jax.numpy as jnp
from jax.nn import initializers

from llmjax import weights
from llmjax.peft import targets
from llmjax.spec import Param, Tree, move
from llmjax.weights import Int8, Nf4

Kind = Literal["int8", "nf4"]


def quantize(
    params: Any, declared: Tree, kind: Kind = "nf4", pattern: str = targets.PROJECTIONS
) -> tuple[Any, Tree]:
    """Quantizes matrices that will not train; call it before adding adapters.

    Args:
        params: as declared; one weight at a time is held in both precisions.
        declared: the spec of the model.
        kind: "nf4", about half a byte per weight, or "int8".
        pattern: regular expression, searched for in the paths of matrices.

    Returns:
        The parameters, and their spec.

    Raises:
        ValueError: as in `spec`.
    """
    changed = spec(declared, kind, pattern)

    def one(node: Any, declared: Any, value: Any) -> Any:
        if not isinstance(node, Int8 | Nf4):
            return value
        return move(_round(kind, declared.inputs, declared.stacked, value), node)

    return jax.tree.map(one, changed, declared, params, is_leaf=targets.is_node), changed


def spec(declared: Tree, kind: Kind = "nf4", pattern: str = targets.PROJECTIONS) -> Tree:
    """The spec of quantized parameters; arguments as in `quantize`.

    Raises:
        ValueError: the kind is unknown; `pattern` matches nothing, or a parameter that is not a
            matrix, has an adapter, or does not divide into blocks of 64.
    """
    if kind not in get_args(Kind):
        raise ValueError(f"kind={kind!r}: choose one of {', '.join(get_args(Kind))}")

    def change(path: str, node: Any, param: Param) -> Any:
        if not isinstance(node, Param):
            raise ValueError(f"pattern={pattern!r} matches {path}, which is already quantized")
        try:
            return _SPECS[kind](param)
        except ValueError as error:
            raise ValueError(f"{path}: {error}") from error

    return targets.replace(declared, "pattern", pattern, change)


@functools.partial(jax.jit, static_argnums=(0, 1, 2))
def _round(kind: Kind, inputs: int, stacked: int, weight: jax.Array) -> Int8 | Nf4:
    if kind == "int8":
        return weights.quantize(weight, inputs, stacked)
    return weights.quantize_nf4(weight, stacked)


def _int8(param: Param) -> Int8:
    """int8 with one scale per output; for tables, one per column."""
    over = range(param.stacked, param.stacked + param.inputs)
    scale = Param(
        tuple(1 if axis in over else length for axis, length in enumerate(param.shape)),
        tuple(None if axis in over else name for axis, name in enumerate(param.axes)),
        initializers.ones,
        dtype=jnp.float32,
    )
    return Int8(dataclasses.replace(param, init=initializers.zeros, dtype=jnp.int8), scale)


def _nf4(param: Param) -> Nf4:
    """nf4: codes are sharded like the weight, scales only along axes that blocks do not span."""
    shape, axes, stacked = param.shape, param.axes, param.stacked
    kept, blocks, groups = weights.layout(shape, stacked)

    def small(lengths: tuple[int, ...], split: int, dtype: Any) -> Param:
        places = (*axes[:split], *(None for _ in lengths[split:]))
        return Param(lengths, places, initializers.zeros, dtype=dtype)

    codes = dataclasses.replace(
        param,
        shape=(*shape[:-1], shape[-1] // 2),
        init=initializers.zeros,
        dtype=jnp.uint8,
    )
    ones = (1,) * (kept + 1 - stacked)
    return Nf4(
        codes,
        small((*shape[:kept], blocks), kept, jnp.int8),
        small((*shape[: kept - 1], groups, blocks), kept - 1, jnp.float32),
        small((*shape[:stacked], *ones), stacked, jnp.float32),
    )


_SPECS: dict[Kind, Callable[[Param], Any]] = {"int8": _int8, "nf4": _nf4}
