"""Kinds of weights, and the one multiplication that knows them all.

A weight in a parameter tree is an array or one of the leaf types below. Models multiply by
weights only through `einsum`, so low-rank adapters and quantised weights need no change to any
model. Leaf types nest: `Lora` over `Int8` is QLoRA.
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp
from flax import struct

from llmjax import collectives, mesh


@struct.dataclass
class Int8:
    """A weight in 8-bit integers: values · scale (Dettmers et al. 2022, section 2.1).

    Attributes:
        values: int8, the weight's shape.
        scale: float32, broadcastable to it: one scale for each output channel.
    """

    values: jax.Array
    scale: jax.Array


@struct.dataclass
class Lora:
    """A frozen weight with a trained low-rank correction: base + scale · a b (Hu et al. 2021).

    Attributes:
        base: the weight, of any kind.
        a: [inputs..., R], contracted with the input.
        b: [R, outputs...]; zero at the start, so that step 0 equals the base model.
        scale: α/R.
    """

    base: Any
    a: jax.Array
    b: jax.Array
    scale: float = struct.field(pytree_node=False)


@struct.dataclass
class Transposed:
    """A weight with its output axes before its input axes, for products of a few rows.

    Decoding reads every weight once a token. XLA:CPU does so at the memory's rate where the weight
    is the left operand and its rows are the outputs, and up to ten times slower elsewhere.

    Attributes:
        values: [outputs..., inputs...].
        axes: the weight's axes in this order.
    """

    values: jax.Array
    axes: tuple[int, ...] = struct.field(pytree_node=False)


@struct.dataclass
class Held:
    """A weight that devices split, and that each holds whole for the time of a step.

    Attributes:
        split: as parameters are.
        whole: the same in the precision of products, not split over devices with rows of their own.
        terms: [devices, ...], whose gradient is each device's own term of the weight's gradient,
            not summed yet; None: the gradient is that of `split`, summed and scattered.
    """

    split: jax.Array
    whole: jax.Array
    terms: jax.Array | None = None


Weight = jax.Array | Int8 | Lora | Transposed | Held


def quantize(weight: jax.Array, inputs: int = 1) -> Int8:
    """Rounds to 8 bits, with the largest magnitude over the first `inputs` axes as the scale."""
    largest = jnp.max(jnp.abs(weight), axis=tuple(range(inputs)), keepdims=True)
    scale = jnp.maximum(largest, jnp.finfo(jnp.float32).tiny) / 127
    return Int8(jnp.round(weight / scale).astype(jnp.int8), scale.astype(jnp.float32))


def transpose(weight: jax.Array, inputs: tuple[int, ...]) -> Transposed:
    """Moves the axes that products contract behind the others."""
    axes = (*(axis for axis in range(weight.ndim) if axis not in inputs), *inputs)
    return Transposed(jnp.transpose(weight, axes), axes)


def materialize(weight: Weight) -> jax.Array:
    """The weight as one array; for export, tests and reading."""
    if isinstance(weight, Lora):
        base = materialize(weight.base)
        delta = jnp.tensordot(weight.a, weight.b, axes=1)
        return base + (weight.scale * delta).astype(base.dtype)
    if isinstance(weight, Int8):
        return weight.values.astype(weight.scale.dtype) * weight.scale
    if isinstance(weight, Transposed):
        return jnp.transpose(weight.values, tuple(map(weight.axes.index, range(len(weight.axes)))))
    return weight.split if isinstance(weight, Held) else weight


def einsum(equation: str, x: jax.Array, weight: Weight, out_axes: mesh.Axes) -> jax.Array:
    """`jnp.einsum(equation, x, weight)` in the precision of `x`, placed by logical axes.

    Args:
        equation: two operands and an explicit result, "bsd,dhc->bshc" say.
        x: activations.
        weight: an array or a leaf type of this module.
        out_axes: a logical axis name or None for each dimension of the result.
    """
    if isinstance(weight, Lora):
        return einsum(equation, x, weight.base, out_axes) + _low_rank(equation, x, weight, out_axes)
    if isinstance(weight, Int8):
        weight = weight.values.astype(x.dtype) * weight.scale.astype(x.dtype)
    if isinstance(weight, Transposed):
        return _weight_on_the_left(equation, x, weight, out_axes)
    if isinstance(weight, Held):
        if weight.whole.dtype == x.dtype:
            split = weight.split.astype(x.dtype)
            return _shared_product(equation, x, split, weight.whole, weight.terms, out_axes)
        weight = weight.split
    weight = weight.astype(x.dtype)
    shared = {name for names in collectives.split(weight) for name in names}
    if shared & _rows_over(equation, x):
        return _shared_product(equation, x, weight, None, None, out_axes)
    return _plain(equation, x, weight, out_axes)


def _plain(equation: str, x: jax.Array, weight: jax.Array, out_axes: mesh.Axes) -> jax.Array:
    rows, flat_equation = _merge_rows(equation)
    if rows and mesh.size(out_axes[1]) == 1:
        product = functools.partial(jnp.einsum, flat_equation)
        flat = mesh.sharded(product, (out_axes[0], *out_axes[2:]))
        out = flat(x.reshape(-1, *x.shape[2:]), weight)
        return mesh.sharded(jnp.reshape, out_axes)(out, (*x.shape[:2], *out.shape[1:]))
    return mesh.sharded(functools.partial(jnp.einsum, equation), out_axes)(x, weight)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 5))
def _shared_product(equation, x, weight, whole, terms, out_axes):
    """Of a weight that is split over devices which have rows of their own.

    Unless it is held whole it is gathered before both passes, and its gradient scattered: XLA would
    do either by sums on all devices.
    """
    del terms
    whole = collectives.gathered(weight, _rows_over(equation, x)) if whole is None else whole
    return _plain(equation, x, whole, out_axes)


def _forward(equation, x, weight, whole, terms, out_axes):
    return _shared_product(equation, x, weight, whole, terms, out_axes), (x, weight, whole, terms)


def _backward(equation, out_axes, kept, cotangent):
    x, weight, whole, terms = kept
    over = _rows_over(equation, x)
    whole = collectives.gathered(weight, over) if whole is None else whole
    _, pull = jax.vjp(lambda x: _plain(equation, x, whole, out_axes), x)
    rows, merged = _merge_rows(equation)

    def by_weight(x, cotangent):
        if rows:
            x, cotangent = (array.reshape(-1, *array.shape[2:]) for array in (x, cotangent))
        operands, result = (merged if rows else equation).split("->")
        inputs, axes = operands.split(",")
        wide = x.dtype if terms is None else terms.dtype
        return jnp.einsum(f"{inputs},{result}->{axes}", x, cotangent, preferred_element_type=wide)

    if terms is not None:
        own = collectives.terms_of_sum(by_weight, (x, cotangent), over, jax.typeof(terms))
        return *pull(cotangent), None, None, own
    like = jax.typeof(weight).sharding.spec
    summed = collectives.sum_of_parts(by_weight, (x, cotangent), over, like)
    return *pull(cotangent), summed, None, None


_shared_product.defvjp(_forward, _backward)


def _rows_over(equation: str, x: jax.Array) -> frozenset[str]:
    """The mesh axes that split those axes of an operand that a product keeps."""
    _, _, contracted, _, _ = _roles(equation)
    inputs = equation.split(",")[0]
    split = zip(inputs, collectives.split(x), strict=True)
    return frozenset(name for axis, names in split if axis not in contracted for name in names)


def _merge_rows(equation: str) -> tuple[str, str]:
    """("bs", "bd,df->bf") of "bsd,df->bsf": the two leading axes, and the rest over one.

    The gradient by the weight contracts all rows; over one axis that is a plain matrix product,
    over two XLA:CPU writes a transposed copy of the activations first (a third of a step).
    """
    operands, result = equation.split("->")
    inputs, axes = operands.split(",")
    rows = inputs[:2]
    if len(inputs) < 3 or result[:2] != rows or set(rows) & set(axes):
        return "", equation
    return rows, f"{inputs[0]}{inputs[2:]},{axes}->{result[0]}{result[2:]}"


def _roles(equation: str) -> tuple[str, str, str, str, str]:
    """("bsd", "bsf", "d", "f", "bs") of "bsd,df->bsf": operand, result, and axes by role.

    The roles are: contracted, the weight's own, and the operand's own.
    """
    operands, result = equation.split("->")
    inputs, axes = operands.split(",")
    contracted = "".join(axis for axis in axes if axis in inputs)
    outputs = "".join(axis for axis in axes if axis not in inputs)
    kept = "".join(axis for axis in inputs if axis not in contracted)
    return inputs, result, contracted, outputs, kept


def _weight_on_the_left(
    equation: str, x: jax.Array, weight: Transposed, out_axes: mesh.Axes
) -> jax.Array:
    """The product as a `dot_general`, since `jnp.einsum` chooses the order of operands itself."""
    inputs, result, contracted, outputs, kept = _roles(equation)
    axis_of = dict(zip(result, out_axes, strict=True))
    axes = tuple(axis_of[axis] for axis in outputs + kept)
    of_weight = range(len(outputs), len(outputs + contracted))
    of_x = (inputs.index(axis) for axis in contracted)
    product = mesh.sharded(jax.lax.dot_general, axes)
    out = product(weight.values.astype(x.dtype), x, ((tuple(of_weight), tuple(of_x)), ((), ())))
    return jnp.einsum(f"{outputs}{kept}->{result}", out)


def _low_rank(equation: str, x: jax.Array, weight: Lora, out_axes: mesh.Axes) -> jax.Array:
    """scale · (x a) b: the equation with its weight cut in two at the rank."""
    inputs, result, contracted, outputs, kept = _roles(equation)
    axis_of = dict(zip(result, out_axes, strict=True))
    low_axes = (*(axis_of[axis] for axis in kept), None)
    low = einsum(f"{inputs},{contracted}r->{kept}r", x, weight.a, low_axes)
    return weight.scale * einsum(f"{kept}r,r{outputs}->{result}", low, weight.b, out_axes)
