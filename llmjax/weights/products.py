"""Products of activations with weights of any leaf type."""

import functools

import jax
import jax.numpy as jnp

from llmjax import collectives, mesh
from llmjax.weights.leaves import (
    Dora,
    Held,
    Lora,
    Scaled,
    Transposed,
    Weight,
    materialize,
    norms,
)
from llmjax.weights.quantized import Int8, Nf4


def einsum(
    equation: str, x: jax.Array, weight: Weight, out_axes: mesh.Axes, *, wide: bool = False
) -> jax.Array:
    """`jnp.einsum(equation, x, weight)` in the precision of `x`, sharded by logical axes.

    Args:
        equation: two operands and an explicit result, such as "bsd,dhc->bshc".
        x: activations.
        weight: an array or a leaf type of this module.
        out_axes: a logical axis name or None for each dimension of the result.
        wide: whether sums are not rounded to the precision of `x`: the result is float32 or wider.
    """
    dtype = jnp.promote_types(x.dtype, jnp.float32) if wide else x.dtype
    if isinstance(weight, Lora):
        out = einsum(equation, x, weight.base, out_axes, wide=wide)
        return out + _low_rank(equation, x, weight, out_axes, wide)
    if isinstance(weight, Dora):
        return _decomposed(equation, x, weight, out_axes, wide)
    if isinstance(weight, Scaled):
        return _scaled(equation, x, weight, out_axes, wide)
    if isinstance(weight, Int8 | Nf4):
        return _quantized(equation, x, weight, out_axes, wide)
    if isinstance(weight, Transposed):
        return _weight_on_the_left(equation, x, weight, out_axes, dtype)
    if isinstance(weight, Held) and (weight.whole is None or weight.whole.dtype == x.dtype):
        split = weight.split.astype(x.dtype)
        return _shared_product(equation, x, split, weight.whole, weight.terms, out_axes, dtype)
    return _of_array(equation, x, materialize(weight).astype(x.dtype), out_axes, dtype)


def _of_array(equation, x, weight, out_axes, dtype) -> jax.Array:
    shared = {name for names in collectives.split(weight) for name in names}
    if shared & _rows_over(equation, x):
        return _shared_product(equation, x, weight, None, None, out_axes, dtype)
    return _plain(equation, x, weight, out_axes, dtype)


def _plain(equation, x, weight, out_axes, dtype) -> jax.Array:
    multiply = functools.partial(jnp.einsum, preferred_element_type=dtype)
    rows, flat_equation = _merge_rows(equation)
    if rows and mesh.size(out_axes[1]) == 1:
        product = functools.partial(multiply, flat_equation)
        flat = mesh.sharded(product, (out_axes[0], *out_axes[2:]))
        out = flat(x.reshape(-1, *x.shape[2:]), weight)
        return mesh.sharded(jnp.reshape, out_axes)(out, (*x.shape[:2], *out.shape[1:]))
    return mesh.sharded(functools.partial(multiply, equation), out_axes)(x, weight)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 5, 6))
def _shared_product(equation, x, weight, whole, terms, out_axes, dtype):
    """The product with a weight that is split over devices with different rows.

    Unless it is held whole, it is gathered in both passes, and its gradient is scattered: XLA on
    its own would implement either by an all-reduce.
    """
    del terms
    whole = collectives.gathered(weight, _rows_over(equation, x)) if whole is None else whole
    return _plain(equation, x, whole, out_axes, dtype)


def _forward(equation, x, weight, whole, terms, out_axes, dtype):
    out = _shared_product(equation, x, weight, whole, terms, out_axes, dtype)
    return out, (x, weight, whole, terms)


def _backward(equation, out_axes, dtype, kept, cotangent):
    x, weight, whole, terms = kept
    cotangent = cotangent.astype(x.dtype)
    over = _rows_over(equation, x)
    whole = collectives.gathered(weight, over) if whole is None else whole
    _, pull = jax.vjp(lambda x: _plain(equation, x, whole, out_axes, x.dtype), x)
    rows, merged = _merge_rows(equation)

    def by_weight(x, cotangent):
        if rows:
            x, cotangent = (array.reshape(-1, *array.shape[2:]) for array in (x, cotangent))
        operands, result = (merged if rows else equation).split("->")
        inputs, axes = operands.split(",")
        return jnp.einsum(f"{inputs},{result}->{axes}", x, cotangent, preferred_element_type=wide)

    wide = x.dtype
    if terms is not None:
        # Terms that are sent to other devices now are in the precision of the product.
        travels = any(over & set(names) for names in collectives.split(terms)[1:])
        wide = x.dtype if travels else terms.dtype
        own = collectives.terms_of_sum(by_weight, (x, cotangent), over, jax.typeof(terms))
        return *pull(cotangent), None, None, own
    like = jax.typeof(weight).sharding.spec
    summed = collectives.sum_of_parts(by_weight, (x, cotangent), over, like)
    return *pull(cotangent), summed, None, None


_shared_product.defvjp(_forward, _backward)


def _rows_over(equation: str, x: jax.Array) -> frozenset[str]:
    """The mesh axes that split the axes of an operand that the product does not contract."""
    _, _, contracted, _, _ = _roles(equation)
    inputs = equation.split(",")[0]
    split = zip(inputs, collectives.split(x), strict=True)
    return frozenset(name for axis, names in split if axis not in contracted for name in names)


def _merge_rows(equation: str) -> tuple[str, str]:
    """("bs", "bd,df->bf") for "bsd,df->bsf": the two leading axes, and the equation with one.

    The gradient of the weight contracts all rows. Over one axis this is a plain matrix product;
    over two, XLA:CPU first writes a transposed copy of the activations (a third of a step).
    """
    operands, result = equation.split("->")
    inputs, axes = operands.split(",")
    rows = inputs[:2]
    if len(inputs) < 3 or result[:2] != rows or set(rows) & set(axes):
        return "", equation
    return rows, f"{inputs[0]}{inputs[2:]},{axes}->{result[0]}{result[2:]}"


def _roles(equation: str) -> tuple[str, str, str, str, str]:
    """("bsd", "bsf", "d", "f", "bs") for "bsd,df->bsf": operand, result, and axes by role.

    The roles are: contracted, only in the weight, and only in the operand.
    """
    operands, result = equation.split("->")
    inputs, axes = operands.split(",")
    contracted = "".join(axis for axis in axes if axis in inputs)
    outputs = "".join(axis for axis in axes if axis not in inputs)
    kept = "".join(axis for axis in inputs if axis not in contracted)
    return inputs, result, contracted, outputs, kept


def _weight_on_the_left(equation, x, weight: Transposed, out_axes, dtype) -> jax.Array:
    """The product as a `dot_general`, because `jnp.einsum` may reorder the operands."""
    inputs, result, contracted, outputs, kept = _roles(equation)
    axis_of = dict(zip(result, out_axes, strict=True))
    axes = tuple(axis_of[axis] for axis in outputs + kept)
    of_weight = range(len(outputs), len(outputs + contracted))
    of_x = (inputs.index(axis) for axis in contracted)
    product = mesh.sharded(jax.lax.dot_general, axes)
    dimensions = (tuple(of_weight), tuple(of_x)), ((), ())
    values = weight.values.astype(x.dtype)
    out = product(values, x, dimensions, preferred_element_type=dtype)
    return jnp.einsum(f"{outputs}{kept}->{result}", out)


def _quantized(
    equation: str, x: jax.Array, weight: Int8 | Nf4, out_axes: mesh.Axes, wide: bool
) -> jax.Array:
    """The product with the dequantized weight, which the backward pass recomputes."""

    def product(x, weight):
        return einsum(equation, x, weight.dequantize(x.dtype), out_axes, wide=wide)

    return jax.checkpoint(product)(x, weight)


def _low_rank(
    equation: str, x: jax.Array, weight: Lora, out_axes: mesh.Axes, wide: bool
) -> jax.Array:
    """scale · (x a) b, or scale · (x bᵀ) aᵀ if the equation contracts the columns.

    Products with a table [V, D] contract its columns.
    """
    inputs, result, contracted, _, kept = _roles(equation)
    axes = equation.split("->")[0].split(",")[1]
    rows, columns = axes[: weight.inputs], axes[weight.inputs :]
    if set(contracted) not in (set(rows), set(columns)):
        raise ValueError(
            f"{equation}: a product with a Lora must contract its rows, {rows}, or its columns, "
            f"{columns}"
        )
    first, second = (f"{rows}r", weight.a), (f"r{columns}", weight.b)
    if set(contracted) == set(columns):
        first, second = second, first
    elif isinstance(weight.a, jax.Array):
        # The gradient of what has the rank as its last axis takes XLA:CPU four times as long. The
        # barrier keeps XLA from merging the transposition into the product again.
        turned = jnp.moveaxis(weight.a, -1, 0)
        first = f"r{rows}", jax.lax.optimization_barrier(turned)
    axis_of = dict(zip(result, out_axes, strict=True))
    low_axes = (*(axis_of[axis] for axis in kept), None)
    low = weight.scale * einsum(f"{inputs},{first[0]}->{kept}r", x, first[1], low_axes)
    return einsum(f"{kept}r,{second[0]}->{result}", low, second[1], out_axes, wide=wide)


def _decomposed(
    equation: str, x: jax.Array, weight: Dora, out_axes: mesh.Axes, wide: bool
) -> jax.Array:
    """(x W) · magnitude / ‖W‖, without a gradient of the norm (Liu et al. 2024, section 4.3)."""
    out = einsum(equation, x, weight.base, out_axes, wide=wide)
    return out * _along(equation, weight.magnitude / norms(weight.base), out, out_axes)


def _scaled(
    equation: str, x: jax.Array, weight: Scaled, out_axes: mesh.Axes, wide: bool
) -> jax.Array:
    if weight.over == "inputs":
        inputs, _, contracted, outputs, _ = _roles(equation)
        axes = equation.split("->")[0].split(",")[1]
        factors = jnp.squeeze(weight.factors, tuple(map(axes.index, outputs)))
        order = [contracted.index(axis) for axis in inputs if axis in contracted]
        shape = [n if axis in contracted else 1 for axis, n in zip(inputs, x.shape, strict=True)]
        x = x * jnp.transpose(factors, order).reshape(shape).astype(x.dtype)
        return einsum(equation, x, weight.base, out_axes, wide=wide)
    out = einsum(equation, x, weight.base, out_axes, wide=wide)
    return out * _along(equation, weight.factors, out, out_axes)


def _along(equation: str, factors: jax.Array, out: jax.Array, out_axes: mesh.Axes) -> jax.Array:
    """Reshapes factors of a weight's outputs, broadcastable to it, to broadcast to the product."""
    _, result, contracted, outputs, _ = _roles(equation)
    axes = equation.split("->")[0].split(",")[1]
    factors = jnp.squeeze(factors, tuple(map(axes.index, contracted)))
    order = [outputs.index(axis) for axis in result if axis in outputs]
    places = [place for axis, place in zip(result, out_axes, strict=True) if axis in outputs]
    factors = mesh.place(jnp.transpose(factors, order), tuple(places))
    behind = tuple(i for i, axis in enumerate(result) if axis not in outputs)
    return jnp.expand_dims(factors, behind).astype(out.dtype)


def scaled_bias(weight: Weight | None, bias: jax.Array) -> jax.Array:
    """The bias of a weight's projection, scaled if the weight's outputs are."""
    if not isinstance(weight, Scaled) or weight.over != "outputs":
        return bias
    return bias * weight.factors.reshape(bias.shape).astype(bias.dtype)
