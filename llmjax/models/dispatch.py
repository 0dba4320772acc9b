"""Sending tokens to the devices that have their experts, and back (Lepikhin et al. 2020).

All within `on_parts`: devices along the mesh axis expert have tokens of their own, and some of the
experts.
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
    """`compute(rows [N, D], experts [N, 1])`, done for each copy where its expert is.

    Args:
        compute: gives [N, 1, D]; rows whose expert is none of the `count` here do not matter.
        count: experts of a device.

    Returns:
        A function of tokens [T, D] and experts [T, k], numbered among all, to copies [T, k, D].
    """

    def run(tokens, experts):
        copies, k = experts.size, experts.shape[1]
        flat = experts.reshape(-1)
        order = jnp.argsort(flat)
        ends = jnp.searchsorted(flat[order], jnp.arange(1, devices() * count + 1, dtype=flat.dtype))
        counts = jnp.diff(ends, prepend=0).astype(flat.dtype)
        # From each device, to each, for each of its experts.
        everyones = jax.lax.all_gather(counts, AXIS).reshape(devices(), devices(), count)
        sizes = jnp.sum(everyones, axis=2)
        # No token goes to one device more often than it has experts.
        room = devices() * len(tokens) * min(k, count)
        rows = exchange(tokens[order // k], sizes, room)
        group, _ = origins(everyones[:, jax.lax.axis_index(AXIS)].reshape(-1), room)
        expert = jnp.where(group < devices() * count, group % count, count)
        out = compute(rows, expert[:, None])[:, 0]
        back = exchange(out, sizes.T, copies)
        return back[jnp.argsort(order)].reshape(len(tokens), k, -1)

    return run


def exchange(rows: jax.Array, sizes: jax.Array, room: int) -> jax.Array:
    """Rows sorted by the device they go to, for rows sorted by the device they come from.

    As many travel as there are (`jax.lax.ragged_all_to_all`). Its gradient is the way back.

    Args:
        rows: [N, D], those for the first device first, without gaps; what is behind them stays.
        sizes: int32 [n, n], how many go from each device to each; the same on all devices.
        room: for how many rows there is room. No more may arrive.

    Returns:
        [room, D]: what arrives, without gaps; zeros behind it.
    """
    return _exchange(rows, sizes, room)


@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def _exchange(rows, sizes, room):
    here = jax.lax.axis_index(AXIS)
    if mesh.platform() == "cpu":
        return _exchange_by_gather(rows, sizes, room, here)
    starts = jnp.cumsum(sizes, axis=1) - sizes  # of what goes to each, where it comes from
    places = jnp.cumsum(sizes, axis=0) - sizes  # of what comes from each, where it goes to
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
    """The same where XLA has no such instruction."""
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
    """For rows in groups, without gaps: the group of each [room], and its number there.

    Rows behind the last group's have a group that does not exist, the one behind it.
    """
    ends = jnp.cumsum(sizes)
    rows = jnp.arange(room, dtype=sizes.dtype)
    group = jnp.searchsorted(ends, rows, side="right").astype(sizes.dtype)
    return group, rows - (ends - sizes).at[group].get(mode="fill", fill_value=0)


def to_experts(rows: jax.Array) -> jax.Array:
    """[E, C, D], a device's C rows for each expert, to [E/n, n·C, D], all rows for its experts."""
    if devices() == 1:
        return rows
    return jax.lax.all_to_all(rows, AXIS, split_axis=0, concat_axis=1, tiled=True)


def from_experts(rows: jax.Array) -> jax.Array:
    """Inverts `to_experts`."""
    if devices() == 1:
        return rows
    return jax.lax.all_to_all(rows, AXIS, split_axis=1, concat_axis=0, tiled=True)
