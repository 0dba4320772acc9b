"""What devices that split a weight and have rows of their own send each other.

They gather the weight before they use it, and scatter its gradient (ZeRO-3, Rajbhandari et al.
2020, section 5). Both are written out, by stages: left to itself XLA:TPU does either, on all chips
of a torus, by a sum on all of them, which sends twice as much.
"""

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import PartitionSpec

from llmjax import mesh


def sum_of_parts(
    op: Callable, arrays: tuple[jax.Array, ...], over: frozenset[str], like: PartitionSpec
) -> jax.Array:
    """`op(*arrays)`, of which every device has a term of a sum; each keeps its part of the sum.

    A gradient of what fsdp splits, by arrays that it splits too.

    Args:
        op: of the parts that a device has.
        arrays: on an Explicit mesh.
        over: the mesh axes that are summed over.
        like: how the result is split. Of an axis that other mesh axes split besides, along which
            devices have all the same, each keeps its part too.
    """
    rest = tuple(sorted(over - {name for names in _entries(like) for name in names}))

    def part(*parts):
        total = _scatter_like(op(*parts), _entries(like), over)
        return jax.lax.psum(total, rest) if rest else total

    specs = tuple(jax.typeof(array).sharding.spec for array in arrays)
    free = mesh.free_axes(jax.sharding.get_abstract_mesh())
    return jax.shard_map(part, in_specs=specs, out_specs=like, axis_names=free)(*arrays)


def terms_of_sum(
    op: Callable, arrays: tuple[jax.Array, ...], over: frozenset[str], like: jax.core.ShapedArray
) -> jax.Array:
    """The terms of `sum_of_parts`, below each other and on the devices that have them.

    Args:
        op: of the parts that a device has.
        arrays: on an Explicit mesh.
        over: the mesh axes that are summed over.
        like: the type of the result, whose first axis is split over those of them that wait, and
            over others along which devices have all the same: the first one's counts. Over the
            rest of `over` terms are summed here, and of what splits other axes each keeps its part.
    """
    waiting, *entries = _entries(like.sharding.spec)
    alike = tuple(name for name in waiting if name not in over)
    rest = tuple(sorted(over.difference(waiting, *entries)))

    def part(*parts):
        term = _scatter_like(op(*parts), entries, over)
        term = jax.lax.psum(term, rest) if rest else term
        for name in alike:
            term = jax.lax.pcast(term, name, to="varying")
            term = jnp.where(jax.lax.axis_index(name) == 0, term, 0)
        return term[None].astype(like.dtype)

    specs = tuple(jax.typeof(array).sharding.spec for array in arrays)
    free = mesh.free_axes(jax.sharding.get_abstract_mesh())
    out = like.sharding.spec
    return jax.shard_map(part, in_specs=specs, out_specs=out, axis_names=free)(*arrays)


def gathered(x: jax.Array, over: frozenset[str]) -> jax.Array:
    """x, of which no axis is split any more that some axes of an Explicit mesh split.

    It has no gradient. Take it within a function whose gradient is `sum_of_parts`.
    """
    spec = jax.typeof(x).sharding.spec
    whole = PartitionSpec(*(None if over & set(names) else names or None for names in split(x)))

    def join(part):
        for axis, names in enumerate(_entries(spec)):
            for name in reversed(names) if over & set(names) else ():
                part = _join(part, name, axis)
        return part

    free = mesh.free_axes(jax.sharding.get_abstract_mesh())
    # That all devices end with the same is not seen by the types.
    joined = jax.shard_map(join, in_specs=spec, out_specs=whole, axis_names=free, check_vma=False)
    return joined(x)


def gather(x: jax.Array, axes: mesh.Axes) -> jax.Array:
    """Within `on_parts`: a part of an array with these logical axes, joined to the whole.

    The gradient is scattered as `sum_of_parts` does; axes that are None stay as they are.
    """
    current = jax.sharding.get_abstract_mesh()
    if current.empty:
        return x
    for axis, logical in enumerate(axes):
        for name in reversed(mesh.RULES[logical] if logical is not None else ()):
            x = _gather(x, name, axis) if current.shape.get(name, 1) > 1 else x
    return x


def scatter(x: jax.Array, logical: str, axis: int) -> jax.Array:
    """Within `on_parts`: sums over what splits a logical axis; each device keeps its part.

    That is its part along an axis of x.
    """
    current = jax.sharding.get_abstract_mesh()
    for name in () if current.empty else mesh.RULES[logical]:
        x = _scatter(x, name, axis) if current.shape.get(name, 1) > 1 else x
    return x


def index(axis: str | None) -> jax.Array | int:
    """Within `on_parts`: which part of a logical axis a device has."""
    names = () if axis is None else mesh.RULES[axis]
    return jax.lax.axis_index(names) if names and mesh.size(axis) > 1 else 0


def split(x: jax.Array) -> list[tuple[str, ...]]:
    """The mesh axes over which each dimension of an array is split, as far as its type says."""
    spec = jax.typeof(x).sharding.spec if not jax.sharding.get_abstract_mesh().empty else ()
    return _entries(spec) + [()] * (x.ndim - len(spec))


@functools.partial(jax.custom_vjp, nondiff_argnums=(1, 2))
def _gather(x, name, axis):
    return _join(x, name, axis)


_gather.defvjp(
    lambda x, name, axis: (_gather(x, name, axis), None),
    lambda name, axis, _, cotangent: (_scatter(cotangent, name, axis),),
)


def _join(x: jax.Array, name: str, axis: int) -> jax.Array:
    """The parts of all devices along a mesh axis, joined along an axis of x."""
    for groups in reversed(_stages(name)):
        x = jax.lax.all_gather(x, name, axis=axis, tiled=True, axis_index_groups=groups)
    return x


def _scatter(x: jax.Array, name: str, axis: int) -> jax.Array:
    """Sums over a mesh axis, of which each device keeps its part along an axis of x."""
    # TPUs have no parts of less than 128 numbers along the last axis, and of more than two axes
    # XLA makes a sum on all devices.
    x = jnp.moveaxis(x, axis, 0)
    rest = x.shape[1:]
    x = x.reshape(len(x), -1)
    for groups in _stages(name):
        x = jax.lax.psum_scatter(x, name, scatter_dimension=0, tiled=True, axis_index_groups=groups)
    return jnp.moveaxis(x.reshape(-1, *rest), 0, axis)


def _scatter_like(
    total: jax.Array, entries: list[tuple[str, ...]], over: frozenset[str]
) -> jax.Array:
    """Each device's part of a sum over mesh axes, of which some split the axes of the result."""
    for axis, names in enumerate(entries):
        for name in names if over & set(names) else ():
            total = (_scatter if name in over else _own)(total, name, axis)
    return total


def _own(x: jax.Array, name: str, axis: int) -> jax.Array:
    """The part along an axis of x of a device of a mesh axis, along which all have the same."""
    length = x.shape[axis] // jax.lax.axis_size(name)
    start = jax.lax.axis_index(name) * length
    return jax.lax.dynamic_slice_in_dim(x, start, length, axis)


def _stages(name: str) -> list[list[list[int]] | None]:
    """Groups of devices that exchange among each other, one stage after the other; None: all.

    Two stages of about √n devices; GPUs need no stages.
    """
    count = jax.lax.axis_size(name)
    first = min((n for n in range(1, count + 1) if count % n == 0 and n * n >= count), default=1)
    if mesh.platform() == "gpu" or first == count or count <= 4:
        return [None]
    numbers = np.arange(count).reshape(first, -1)
    return [numbers.T.tolist(), numbers.tolist()]


def _entries(spec: PartitionSpec | tuple[()]) -> list[tuple[str, ...]]:
    """The mesh axes of each dimension of a spec."""
    parts = [part if isinstance(part, tuple) else (part,) for part in spec]
    return [tuple(name for name in part if name is not None) for part in parts]
