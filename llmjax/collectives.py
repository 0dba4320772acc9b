"""Collectives for weights that are split over devices with different rows of the batch.

Devices gather a weight before use and scatter its gradient (ZeRO-3, Rajbhandari et al. 2020,
section 5). Both are explicit and run in stages: XLA:TPU on its own would implement either by an
all-reduce over all chips of a torus, which sends twice as much.
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
    """Sums `op(*arrays)` over devices that each compute one term; each keeps its part of the sum.

    Used for gradients of weights split by fsdp, computed from arrays that fsdp splits too.

    Args:
        op: function of a device's parts of the arrays.
        arrays: on an Explicit mesh.
        over: the mesh axes that are summed over.
        like: sharding of the result. Dimensions may also be split over mesh axes along which all
            devices have the same sum; each of them keeps its part too.
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
    """The terms of `sum_of_parts`, stacked along a new axis and kept on the devices that have them.

    Args:
        op: function of a device's parts of the arrays.
        arrays: on an Explicit mesh.
        over: the mesh axes that are summed over.
        like: the type of the result. Its first axis is split over those axes of `over` whose sum is
            deferred, and over axes along which all devices have the same term, of which only the
            first is nonzero. Terms are summed over the rest of `over`, and scattered over the axes
            that split other dimensions.
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
    """Gathers every dimension of x that any of the mesh axes in `over` splits (Explicit mesh).

    Not differentiable: use it within a function whose gradient is `sum_of_parts`.
    """
    spec = jax.typeof(x).sharding.spec
    whole = PartitionSpec(*(None if over & set(names) else names or None for names in split(x)))

    def join(part):
        for axis, names in enumerate(_entries(spec)):
            for name in reversed(names) if over & set(names) else ():
                part = _join(part, name, axis)
        return part

    free = mesh.free_axes(jax.sharding.get_abstract_mesh())
    # The types cannot express that all devices end up with the same values.
    joined = jax.shard_map(join, in_specs=spec, out_specs=whole, axis_names=free, check_vma=False)
    return joined(x)


def gather(x: jax.Array, axes: mesh.Axes) -> jax.Array:
    """Within `on_parts`: gathers the whole array from its parts along these logical axes.

    The gradient is scattered as in `sum_of_parts`; dimensions with None are left unchanged.
    """
    current = jax.sharding.get_abstract_mesh()
    if current.empty:
        return x
    for axis, logical in enumerate(axes):
        for name in reversed(mesh.RULES[logical] if logical is not None else ()):
            x = _gather(x, name, axis) if current.shape.get(name, 1) > 1 else x
    return x


def scatter(x: jax.Array, logical: str, axis: int) -> jax.Array:
    """Within `on_parts`: sums over the mesh axes of a logical axis.

    Each device keeps its part of the sum along dimension `axis` of x.
    """
    current = jax.sharding.get_abstract_mesh()
    for name in () if current.empty else mesh.RULES[logical]:
        x = _scatter(x, name, axis) if current.shape.get(name, 1) > 1 else x
    return x


def index(axis: str | None) -> jax.Array | int:
    """Within `on_parts`: the index of this device's part along a logical axis."""
    names = () if axis is None else mesh.RULES[axis]
    return jax.lax.axis_index(names) if names and mesh.size(axis) > 1 else 0


def split(x: jax.Array) -> list[tuple[str, ...]]:
    """The mesh axes over which each dimension of an array is split, according to its type."""
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
    """Gathers the parts of all devices along a mesh axis, and concatenates them along `axis`."""
    for groups in reversed(_stages(name)):
        x = jax.lax.all_gather(x, name, axis=axis, tiled=True, axis_index_groups=groups)
    return x


def _scatter(x: jax.Array, name: str, axis: int) -> jax.Array:
    """Sums over a mesh axis; each device keeps its part along dimension `axis` of x."""
    # TPUs cannot split the last dimension below 128 elements, and XLA turns a scatter of arrays of
    # more than two dimensions into an all-reduce.
    x = jnp.moveaxis(x, axis, 0)
    rest = x.shape[1:]
    x = x.reshape(len(x), -1)
    for groups in _stages(name):
        x = jax.lax.psum_scatter(x, name, scatter_dimension=0, tiled=True, axis_index_groups=groups)
    return jnp.moveaxis(x.reshape(-1, *rest), 0, axis)


def _scatter_like(
    total: jax.Array, entries: list[tuple[str, ...]], over: frozenset[str]
) -> jax.Array:
    """Scatters a sum over mesh axes to the devices that split the dimensions of the result."""
    for axis, names in enumerate(entries):
        for name in names if over & set(names) else ():
            total = (_scatter if name in over else _own)(total, name, axis)
    return total


def _own(x: jax.Array, name: str, axis: int) -> jax.Array:
    """This device's part along `axis` of x, which is equal on all devices of a mesh axis."""
    length = x.shape[axis] // jax.lax.axis_size(name)
    start = jax.lax.axis_index(name) * length
    return jax.lax.dynamic_slice_in_dim(x, start, length, axis)


def _stages(name: str) -> list[list[list[int]] | None]:
    """The device groups of each stage of a collective; None for one group of all devices.

    There are two stages with groups of about √n devices; GPUs need no stages.
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
