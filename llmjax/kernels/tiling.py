"""Helpers shared by tiled kernels."""

import jax
import jax.numpy as jnp

LANES = 128
LOWEST = -0.7 * float(jnp.finfo(jnp.float32).max)  # finite, so that differences are not NaN


def product(left: jax.Array, right: jax.Array, left_axis: int, right_axis: int) -> jax.Array:
    """A matrix product over one axis of each operand, accumulated in float32."""
    exact = left.dtype == jnp.float32
    return jax.lax.dot_general(
        left,
        right,
        (((left_axis,), (right_axis,)), ((), ())),
        precision=jax.lax.Precision.HIGHEST if exact else None,
        preferred_element_type=jnp.float32,
    )


def divide(x: jax.Array, by: jax.Array | int) -> tuple[jax.Array, jax.Array]:
    """Quotient and remainder of non-negative integers, without the instructions for signs."""
    by = jnp.asarray(by, x.dtype)
    return jax.lax.div(x, by), jax.lax.rem(x, by)


def pad(x: jax.Array, axis: int, block: int, value: int = 0) -> jax.Array:
    """Pads an axis with `value` to whole blocks."""
    short = -x.shape[axis] % block
    if not short:
        return x
    return jnp.pad(
        x, [(0, short if i == axis else 0) for i in range(x.ndim)], constant_values=value
    )


def column(row: jax.Array) -> jax.Array:
    """Turns [1, n] into [n, 1]."""
    return jnp.broadcast_to(row, (8, row.shape[1])).T[:, :1]
