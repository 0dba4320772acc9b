"""Grouped matrix products: each row is multiplied by the weight of its own expert."""

import functools
from collections.abc import Callable
from typing import Literal

import jax
import jax.numpy as jnp
from flax import struct

from llmjax import collectives, mesh

MAX_BLOCK = 128  # rows of a block on CPUs; larger blocks pad more and are no faster

Implementation = Literal["blocks", "ragged", "gathered"]


@struct.dataclass
class Plan:
    """A layout of rows sorted by expert; each expert starts a new block of rows.

    Attributes:
        tokens: int32 [N], the token of each row; out of range for padding rows.
        rows: int32 [T, k], the row of each copy; out of range if another device has the expert.
        owners: int32 [blocks], the expert of each block.
        sizes: int32 [E], rows of each expert, including the padding of its last block.
    """

    tokens: jax.Array
    rows: jax.Array
    owners: jax.Array
    sizes: jax.Array


def fastest(copies: int, count: int) -> Implementation:
    """The fastest implementation for `copies` of tokens and `count` experts on a device.

    On CPUs it is "blocks", a loop over blocks of rows with one expert each. Elsewhere it is
    "ragged" (`jax.lax.ragged_dot`), or "gathered" for so few rows that most weights are unused.
    """
    if mesh.platform() == "cpu":
        return "blocks"
    return "gathered" if copies < count else "ragged"


def block_size(copies: int, count: int, implementation: Implementation) -> int:
    """Rows per block: a power of two of at most an expert's mean number of rows, or 1."""
    if implementation != "blocks":
        return 1
    return min(MAX_BLOCK, 1 << max(copies // count, 1).bit_length() - 1)


def product(
    rows: jax.Array,
    part: jax.Array,
    plan: Plan,
    implementation: Implementation,
    axes: mesh.Axes,
) -> jax.Array:
    """Rows [N, D] times their experts' weights [E, D, F], within `on_parts`.

    Args:
        rows: in the order of the plan.
        part: this device's part of the weights.
        plan: from `plan`.
        implementation: see `fastest`.
        axes: as in `joined`.
    """
    return joined(_PRODUCTS[implementation], rows, part, plan, axes)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 4))
def joined(
    function: Callable, rows: jax.Array, part: jax.Array, plan: Plan | None, axes: mesh.Axes
) -> jax.Array:
    """`function(rows, weight, plan)` from a part of the weight, within `on_parts`.

    Both passes gather the weight, so that it is not kept whole in between, and the gradient is
    scattered.

    Args:
        function: linear in rows and in the weight.
        rows: its first argument.
        part: this device's part of the weight.
        plan: its last argument.
        axes: the logical axes along which parts are gathered; None dimensions are not.
    """
    return function(rows, collectives.gather(part, axes), plan)


def _joined_backward(function, axes, kept, cotangent):
    rows, part, plan = kept

    def again(rows, part):
        return function(rows, collectives.gather(part, axes), plan)

    return *jax.vjp(again, rows, part)[1](cotangent), None


joined.defvjp(
    lambda function, rows, part, plan, axes: (
        joined(function, rows, part, plan, axes),
        (rows, part, plan),
    ),
    _joined_backward,
)


def plan(chosen: jax.Array, count: int, size: int) -> Plan:
    """The plan for experts [T, k] and blocks of `size` rows; [0, count) are on this device."""
    flat = chosen.reshape(-1)
    flat = jnp.where((flat >= 0) & (flat < count), flat, count)
    order = jnp.argsort(flat)
    ordered = flat[order]
    ends = jnp.searchsorted(ordered, jnp.arange(1, count + 1, dtype=flat.dtype))
    copies = jnp.diff(ends, prepend=0)
    sizes = -(-copies // size) * size
    last = jnp.cumsum(sizes)
    blocks = (flat.size + min(count, flat.size) * (size - 1)) // size
    # A copy's row: where its expert's rows begin, and its rank among them.
    shift = jnp.append(last - sizes - (ends - copies), blocks * size)
    row = jnp.minimum(jnp.arange(flat.size) + shift[ordered], blocks * size)
    rows = jnp.zeros_like(flat).at[order].set(row.astype(flat.dtype))
    token = (order // chosen.shape[1]).astype(flat.dtype)
    tokens = jnp.full_like(flat, len(chosen), shape=blocks * size).at[row].set(token, mode="drop")
    owners = jnp.searchsorted(last, size * jnp.arange(blocks), side="right")
    return Plan(tokens, rows.reshape(chosen.shape), owners, sizes)


def _ragged(rows: jax.Array, weight: jax.Array, plan: Plan) -> jax.Array:
    sizes = plan.sizes
    if len(weight) == 1 and mesh.platform() == "tpu":
        # For v6e, libtpu 0.0.42 and 0.0.52 cannot compile a single group: add an empty one.
        weight, sizes = jnp.concatenate([weight, weight]), jnp.append(sizes, 0)
    product = jax.lax.ragged_dot(rows, weight, sizes)
    # The values after the last expert's rows are undefined.
    return jnp.where(jnp.arange(len(rows))[:, None] < jnp.sum(plan.sizes), product, 0)


def _gathered(rows: jax.Array, weight: jax.Array, plan: Plan) -> jax.Array:
    return jnp.einsum("nd,ndf->nf", rows, weight.at[plan.owners].get(mode="clip"))


def _in_blocks(rows: jax.Array, weight: jax.Array, plan: Plan) -> jax.Array:
    used = jnp.sum(plan.sizes) // (len(rows) // len(plan.owners))
    return _loop(rows, weight, plan.owners, used)


@jax.custom_vjp
def _loop(rows: jax.Array, weight: jax.Array, owners: jax.Array, used: jax.Array) -> jax.Array:
    """Multiplies the first `used` blocks of rows [N, D] by their owners' weights of [E, D, F].

    XLA:CPU compiles `ragged_dot` to products of all rows with every expert, and a gather of weights
    to a slow copy; the loop slices instead. It ends with the last block that holds rows, so a
    device with few of the experts only does its share of the work.
    """
    size = len(rows) // len(owners)

    def one(block, out):
        part = _block(rows, block, size) @ _expert(weight, owners, block)
        return jax.lax.dynamic_update_slice_in_dim(out, part, block * size, axis=0)

    out = jax.lax.full_like(rows, 0, shape=(len(rows), weight.shape[2]))
    return jax.lax.fori_loop(0, used, one, out)


def _forward(rows, weight, owners, used):
    return _loop(rows, weight, owners, used), (rows, weight, owners, used)


def _backward(kept, cotangent):
    """Updates gradients in place; autodiff would add a full-size array of zeros per block."""
    rows, weight, owners, used = kept
    size = len(rows) // len(owners)

    def one(block, gradients):
        of_rows, of_weight = gradients
        given = _block(cotangent, block, size)
        part = given @ _expert(weight, owners, block).T
        added = jnp.matmul(_block(rows, block, size).T, given, preferred_element_type=wide)
        return (
            jax.lax.dynamic_update_slice_in_dim(of_rows, part, block * size, axis=0),
            of_weight.at[owners[block]].add(added),
        )

    wide = jnp.promote_types(weight.dtype, jnp.float32)
    zeros = jnp.zeros_like(rows), jnp.zeros_like(weight, dtype=wide)
    of_rows, of_weight = jax.lax.fori_loop(0, used, one, zeros)
    return of_rows, of_weight.astype(weight.dtype), None, None


def _block(rows, block, size):
    return jax.lax.dynamic_slice_in_dim(rows, block * size, size, axis=0)


def _expert(weight, owners, block):
    return jax.lax.dynamic_index_in_dim(weight, owners[block], keepdims=False)


_loop.defvjp(_forward, _backward)


_PRODUCTS: dict[Implementation, Callable] = {
    "blocks": _in_blocks,
    "ragged": _ragged,
    "gathered": _gathered,
}
