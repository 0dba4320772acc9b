"""The kinds of weights."""

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

    It is a matrix of rows by columns, either of which may be several axes. Stacked ones, of layers
    or experts, have leading axes in common.

    Attributes:
        base: the weight, of any kind, [stacked..., rows..., columns...].
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
        """How many axes number matrices."""
        return self.a.ndim + self.b.ndim - 2 - self.ndim

    @property
    def inputs(self) -> int:
        """How many axes the rows are."""
        return self.a.ndim - 1 - self.stacked


@struct.dataclass
class Dora:
    """A weight in magnitude and direction: magnitude · W / ‖W‖ by columns (Liu et al. 2024).

    Attributes:
        base: W, a `Lora`.
        magnitude: [stacked..., 1..., columns...]; at the start the base's norms.
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
        base: the weight, of any kind.
        factors: broadcastable to it, with an axis of 1 for each of the other side.
        over: which side they multiply. Of outputs, a bias beside the weight is multiplied as well.
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
    """A weight with its output axes before its input axes, for products of a few rows.

    Decoding reads every weight once a token. XLA:CPU does so at the memory's rate where the weight
    is the left operand and its rows are the outputs, and up to ten times slower elsewhere.

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
    """A weight of which devices hold more for the time of a step than they do between steps.

    Attributes:
        split: as parameters are.
        whole: the same in the precision of products, not split over devices with rows of their own;
            None: it is gathered for each product.
        terms: [devices, ...], whose gradient is each device's own term of the weight's gradient,
            not summed yet over the mesh axes that split the first one; None: the gradient is that
            of `split`, summed and scattered.
    """

    split: Any
    whole: Any = None
    terms: Any = None

    @property
    def ndim(self) -> int:
        """The weight's number of axes."""
        return self.split.ndim


Weight = jax.Array | Int8 | Nf4 | Lora | Dora | Scaled | Transposed | Held
WRAPPERS = (Lora, Dora, Scaled)  # kinds that add to a base
KINDS = (Int8, Nf4, *WRAPPERS, Transposed, Held)


def is_kind(node: Any) -> bool:
    """Whether `node` is a weight that is not a plain array."""
    return isinstance(node, KINDS)


def transpose(weight: jax.Array, inputs: tuple[int, ...]) -> Transposed:
    """Moves the axes that products contract behind the others."""
    axes = (*(axis for axis in range(weight.ndim) if axis not in inputs), *inputs)
    return Transposed(jnp.transpose(weight, axes), axes)


def materialize(weight: Weight) -> jax.Array:
    """The weight as one array; for export, tests and reading."""
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


def norms(weight: Lora) -> jax.Array:
    """Of the weight's columns, [stacked..., 1..., columns...], without a gradient."""
    whole = jax.lax.stop_gradient(materialize(weight))
    wide = whole.astype(jnp.promote_types(whole.dtype, jnp.float32))
    over = tuple(range(weight.stacked, weight.stacked + weight.inputs))
    return jnp.sqrt(jnp.sum(jnp.square(wide), axis=over, keepdims=True))


def _product(weight: Lora, base: jax.Array) -> jax.Array:
    """a b, laid out as the base is."""
    stacked, rows = weight.stacked, weight.inputs
    axes = _AXES[: weight.ndim]
    split = mesh.spec_of(base)
    a, b = materialize(weight.a), materialize(weight.b)
    equation = f"{axes[: stacked + rows]}r,{axes[:stacked]}r{axes[stacked + rows :]}->{axes}"
    return jnp.einsum(equation, a, b, out_sharding=split)
