"""Sends tokens to the devices that hold their experts, and back (Lepikhin et al. 2020).

All functions run within `on_parts`: each device along the mesh axis expert holds its own tokens and
some of the experts.
"""

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp

from llmjax import mesh

AXIS = "expert"


def devices() -> int:
    """How many devices share the experts."""
    return mesh.size("experts")


def elsewhere(compute: Callable, count: int) -> Callable:
    """Runs `compute(rows [N, D], experts [N, 1])` for each copy on the device of its expert.

    Args:
        compute: returns [N, 1, D]; rows with an expert index of `count` are ignored.
        count: experts per device.

    Returns:
        A function of tokens [T, D] and global expert indices [T, k] that returns [T, k, D].
    """

    def run(tokens, experts):
        copies, k = experts.size, experts.shape[1]
        flat = experts.reshape(-1)
        order = jnp.argsort(flat)
        ends = jnp.searchsorted(flat[order], jnp.arange(1, devices() * count + 1, dtype=flat.dtype))
        counts = jnp.diff(ends, prepend=0).astype(flat.dtype)
        # Indexed by source device, target device and expert of the target.
        everyones = jax.lax.all_gather(counts, AXIS).reshape(devices(), devices(), count)
        sizes = jnp.sum(everyones, axis=2)
        # A token goes to a device at most once per expert there.
        room = devices() * len(tokens) * min(k, count)
        rows = exchange(tokens[order // k], sizes, room)
        group, _ = origins(everyones[:, jax.lax.axis_index(AXIS)].reshape(-1), room)
        expert = jnp.where(group < devices() * count, group % count, count)
        out = compute(rows, expert[:, None])[:, 0]
        back = exchange(out, sizes.T, copies)
        return back[jnp.argsort(order)].reshape(len(tokens), k, -1)

    return run


def exchange(rows: jax.Array, sizes: jax.Array, room: int) -> jax.Array:
    """Exchanges rows sorted by target device; returns them sorted by source device.

    Only actual rows are sent (`jax.lax.ragged_all_to_all`). The gradient is the reverse exchange.

    Args:
        rows: [N, D], sorted by target device without gaps; rows after the last are not sent.
        sizes: int32 [n, n], rows sent from device i to device j; the same on all devices.
        room: capacity of the result. No more rows may arrive.

    Returns:
        [room, D]: the received rows without gaps, followed by zeros.
    """
    return _exchange(rows, sizes, room)


@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def _exchange(rows, sizes, room):
    here = jax.lax.axis_index(AXIS)
    if mesh.platform() == "cpu":
        return _exchange_by_gather(rows, sizes, room, here)
    starts = jnp.cumsum(sizes, axis=1) - sizes  # offsets at the source
    places = jnp.cumsum(sizes, axis=0) - sizes  # offsets at the target
    return jax.lax.ragged_all_to_all(
        rows,
        jax.lax.full_like(rows, 0, shape=(room, rows.shape[1])),
        starts[here],
        sizes[here],
        places[here],
        sizes[:, here],
        axis_name=AXIS,
    )


def _exchange_by_gather(rows, sizes, room, here):
    """The same exchange for CPUs, where XLA does not implement `ragged_all_to_all`."""
    everything = jax.lax.all_gather(rows, AXIS)
    source, offset = origins(sizes[:, here], room)
    first = (jnp.cumsum(sizes, axis=1) - sizes)[:, here]
    at = first.at[source].get(mode="fill", fill_value=0) + offset
    return everything.at[source, at].get(mode="fill", fill_value=0)


_exchange.defvjp(
    lambda rows, sizes, room: (_exchange(rows, sizes, room), (rows, sizes)),
    lambda room, kept, cotangent: (_exchange(cotangent, kept[1].T, len(kept[0])), None),
)


def origins(sizes: jax.Array, room: int) -> tuple[jax.Array, jax.Array]:
    """For rows in contiguous groups: the group of each [room], and its index in the group.

    Rows after the last group get a group index one past it.
    """
    ends = jnp.cumsum(sizes)
    rows = jnp.arange(room, dtype=sizes.dtype)
    group = jnp.searchsorted(ends, rows, side="right").astype(sizes.dtype)
    return group, rows - (ends - sizes).at[group].get(mode="fill", fill_value=0)


def to_experts(rows: jax.Array) -> jax.Array:
    """[E, C, D], a device's C rows per expert, to [E/n, n·C, D], all rows of its experts."""
    if devices() == 1:
        return rows
    return jax.lax.all_to_all(rows, AXIS, split_axis=0, concat_axis=1, tiled=True)


def from_experts(rows: jax.Array) -> jax.Array:
    """Inverts `to_experts`."""
    if devices() == 1:
        return rows
    return jax.lax.all_to_all(rows, AXIS, split_axis=1, concat_axis=0, tiled=True)
