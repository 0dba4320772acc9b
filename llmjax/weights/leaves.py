"""Leaf types for weights."""

from typing import Any, Literal

import jax
import jax.numpy as jnp
from flax import struct

from llmjax import mesh
from llmjax.weights.quantized import Int8, Nf4

Side = Literal["inputs", "outputs"]

_AXES = "abcdefghijklmnop"


@struct.dataclass
class Lora:
    """A frozen weight with a trained low-rank correction: base + scale · a b (Hu et al. 2021).

    The weight is a matrix [rows, columns], each of which may be several axes. Weights that are
    stacked over layers or experts share leading axes with a and b.

    Attributes:
        base: the weight, of any leaf type, [stacked..., rows..., columns...].
        a: [stacked..., rows..., R].
        b: [stacked..., R, columns...].
        scale: α/R.
    """

    base: Any
    a: Any
    b: Any
    scale: float = struct.field(pytree_node=False)

    @property
    def ndim(self) -> int:
        """The weight's number of axes."""
        return self.base.ndim

    @property
    def stacked(self) -> int:
        """The number of leading axes that stack matrices."""
        return self.a.ndim + self.b.ndim - 2 - self.ndim

    @property
    def inputs(self) -> int:
        """The number of axes that form the rows."""
        return self.a.ndim - 1 - self.stacked


@struct.dataclass
class Dora:
    """A weight as magnitude and direction: magnitude · W / ‖W‖ by columns (Liu et al. 2024).

    Attributes:
        base: W, a `Lora`.
        magnitude: [stacked..., 1..., columns...]; initialized to the base's column norms.
    """

    base: Any
    magnitude: Any

    @property
    def ndim(self) -> int:
        """The weight's number of axes."""
        return self.base.ndim


@struct.dataclass
class Scaled:
    """A weight whose inputs or outputs are multiplied by learned factors (Liu et al. 2022, IA³).

    Attributes:
        base: the weight, of any leaf type.
        factors: broadcastable to the weight, of length 1 along each axis of the other side.
        over: the side that they multiply. Factors of outputs also multiply the bias.
    """

    base: Any
    factors: Any
    over: Side = struct.field(pytree_node=False)

    @property
    def ndim(self) -> int:
        """The weight's number of axes."""
        return self.base.ndim


@struct.dataclass
class Transposed:
    """A weight with its output axes before its input axes, for products with a few rows.

    Decoding reads every weight once per token. XLA:CPU reaches memory bandwidth if the weight is
    the left operand and its rows are the outputs, and is up to ten times slower otherwise.

    Attributes:
        values: [outputs..., inputs...].
        axes: the weight's axes in this order.
    """

    values: Any
    axes: tuple[int, ...] = struct.field(pytree_node=False)

    @property
    def ndim(self) -> int:
        """The weight's number of axes."""
        return self.values.ndim


@struct.dataclass
class Held:
    """A weight that is held in a less sharded form during a step than between steps.

    Attributes:
        split: the weight, sharded like the parameters.
        whole: the weight in the precision of products, not split over devices with different rows;
            None if it is gathered for each product.
        terms: [devices, ...], an array whose gradient is each device's own term of the weight's
            gradient, not yet summed over the mesh axes that split its first axis; None if `split`
            gets the gradient, summed and scattered.
    """

    split: Any
    whole: Any = None
    terms: Any = None

    @property
    def ndim(self) -> int:
        """The weight's number of axes."""
        return self.split.ndim


Weight = jax.Array | Int8 | Nf4 | Lora | Dora | Scaled | Transposed | Held
WRAPPERS = (Lora, Dora, Scaled)  # types that wrap a base
KINDS = (Int8, Nf4, *WRAPPERS, Transposed, Held)


def is_kind(node: Any) -> bool:
    """Whether `node` is a weight that is not a plain array."""
    return isinstance(node, KINDS)


def transpose(weight: jax.Array, inputs: tuple[int, ...]) -> Transposed:
    """Moves the axes that products contract after the others."""
    axes = (*(axis for axis in range(weight.ndim) if axis not in inputs), *inputs)
    return Transposed(jnp.transpose(weight, axes), axes)


def materialize(weight: Weight) -> jax.Array:
    """The weight as one array, for export, tests and inspection."""
    if isinstance(weight, Lora):
        base = materialize(weight.base)
        return (base + weight.scale * _product(weight, base)).astype(base.dtype)
    if isinstance(weight, Dora):
        base = materialize(weight.base)
        return base * (weight.magnitude / norms(weight.base)).astype(base.dtype)
    if isinstance(weight, Scaled):
        base = materialize(weight.base)
        return base * weight.factors.astype(base.dtype)
    if isinstance(weight, Int8 | Nf4):
        return weight.dequantize()
    if isinstance(weight, Transposed):
        return jnp.transpose(weight.values, tuple(map(weight.axes.index, range(len(weight.axes)))))
    return weight.split if isinstance(weight, Held) else weight


def parted(weight: Weight) -> tuple[jax.Array, jax.Array | None]:
    """The weight as one array, and the terms that get its gradient instead (`Held`), or None."""
    return materialize(weight), weight.terms if isinstance(weight, Held) else None


def of_replicas(weight: Weight, dtype: Any, axes: mesh.Axes) -> tuple[jax.Array, mesh.Axes]:
    """An argument for `on_parts`, and its axes: [1, ...], or [N, ...] of N replicas with terms.

    Replicas then each have a weight, and thus a gradient, of their own.
    """
    array, terms = parted(weight)
    array, axes = jnp.asarray(array, dtype)[None], (None, *axes)
    if terms is None:
        return array, axes
    axes = ("replicas", *axes[1:])
    same = mesh.sharded(jnp.broadcast_to, axes)(array, terms.shape)
    return jax.lax.stop_gradient(same) + terms.astype(dtype), axes


def norms(weight: Lora) -> jax.Array:
    """The norms of the weight's columns, [stacked..., 1..., columns...], without a gradient.

    They are above 0, so that a column of zeros keeps its direction, 0, rather than becoming NaN.
    """
    whole = jax.lax.stop_gradient(materialize(weight))
    wide = whole.astype(jnp.promote_types(whole.dtype, jnp.float32))
    over = tuple(range(weight.stacked, weight.stacked + weight.inputs))
    found = jnp.sqrt(jnp.sum(jnp.square(wide), axis=over, keepdims=True))
    return jnp.maximum(found, jnp.finfo(jnp.float32).tiny)


def _product(weight: Lora, base: jax.Array) -> jax.Array:
    """a b, with the shape and sharding of the base."""
    stacked, rows = weight.stacked, weight.inputs
    axes = _AXES[: weight.ndim]
    split = mesh.spec_of(base)
    a, b = materialize(weight.a), materialize(weight.b)
    equation = f"{axes[: stacked + rows]}r,{axes[:stacked]}r{axes[stacked + rows :]}->{axes}"
    return jnp.einsum(equation, a, b, out_sharding=split)
