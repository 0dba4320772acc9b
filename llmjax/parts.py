"""Functions that every device runs on its own parts of arrays."""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AxisType

from llmjax import mesh


def on_parts(
    op: Callable,
    in_axes: tuple[mesh.Axes, ...],
    out_axes: mesh.Axes | tuple[mesh.Axes, ...],
    *,
    check: bool = True,
) -> Callable:
    """Makes every device run `op` on its parts of the arguments (`jax.shard_map`).

    As in an einsum, results are summed over the mesh axes that split an argument but not the
    result. Without a mesh this is `op` itself.

    Args:
        op: maps arrays to one array or a tuple of arrays; it sees a device's local shapes.
        in_axes: the logical axes of each argument, which is resharded to them first.
        out_axes: the logical axes of the result, or of each result.
        check: whether jax checks which values vary over devices (`check_vma`), which Pallas'
            interpreter does not support.
    """
    current = mesh.current_mesh()
    if current is None:
        return op
    if AxisType.Manual in current.axis_types:
        return _within(op, in_axes, out_axes, check)
    return _mapped(op, in_axes, out_axes, check)


def _mapped(op, in_axes, out_axes, check: bool) -> Callable:
    """`on_parts` by one `shard_map`."""
    current = mesh.current_mesh()
    assert current is not None
    specs = tuple(mesh.visible_spec(axes, current) for axes in in_axes)
    several = _several(out_axes)
    results = tuple(
        mesh.visible_spec(axes, current) for axes in (out_axes if several else (out_axes,))
    )
    names = set().union(*map(mesh.axis_names, specs))

    def others(spec):
        return tuple(sorted(names - mesh.axis_names(spec)))

    def part(*parts):
        # Makes autodiff sum the gradient over the devices that hold the same values.
        alike = [others(spec) for spec in specs]
        varying = [
            jax.lax.pcast(x, over, to="varying") if over and check else x
            for x, over in zip(parts, alike, strict=True)
        ]
        found = op(*varying) if several else (op(*varying),)
        sums = (jax.lax.psum(x, others(to)) for x, to in zip(found, results, strict=True))
        return tuple(sums) if several else next(sums)

    mapped = jax.shard_map(
        part,
        in_specs=specs,
        out_specs=results if several else results[0],
        axis_names=mesh.free_axes(current),
        check_vma=check,
    )
    return lambda *args: mapped(*map(mesh.place, args, in_axes))


def _within(op, in_axes, out_axes, check: bool) -> Callable:
    """`on_parts` within another `shard_map`, which jax (0.10 to 0.12) cannot differentiate.

    For a gradient, or to hoist code out of a loop, jax splits an inner `shard_map` in two, and
    marks the values passed between them as split over the outer one's axes too, unless checks are
    off. So they are off here, and the gradient is a `shard_map` of its own.
    """
    current = mesh.current_mesh()
    assert current is not None
    outer = tuple(name for name in current.axis_names if name not in mesh.free_axes(current))
    listed: tuple[mesh.Axes, ...] = out_axes if _several(out_axes) else (out_axes,)

    @jax.custom_vjp
    def run(*args):
        found = _mapped(op, in_axes, out_axes, check=False)(*args)
        # Without the check, jax does not know that the results vary.
        return jax.tree.map(lambda x: jax.lax.pcast(x, outer, to="varying"), found)

    def forward(*args):
        return run(*args), args

    def backward(args, cotangents):
        places = [i for i, x in enumerate(args) if jnp.issubdtype(x.dtype, np.floating)]

        def pull(*arrays):
            parts, cotangents = list(arrays[: len(args)]), arrays[len(args) :]

            def of_floats(*floats):
                for i, x in zip(places, floats, strict=True):
                    parts[i] = x
                return op(*parts)

            _, transposed = jax.vjp(of_floats, *(parts[i] for i in places))
            return transposed(cotangents if _several(out_axes) else cotangents[0])

        to = tuple(in_axes[i] for i in places)
        cotangents = cotangents if _several(out_axes) else (cotangents,)
        found = iter(_mapped(pull, (*in_axes, *listed), to, check)(*args, *cotangents))
        return tuple(next(found) if i in places else None for i in range(len(args)))

    run.defvjp(forward, backward)
    return run


def over_axes(op: Callable, in_specs: Any, out_specs: Any, axes: set[str]) -> Callable:
    """`jax.shard_map` over some axes of an Explicit mesh; arrays stay split along the others.

    Before jax 0.12, XLA was told that inputs and outputs are whole along the other axes, so it
    gathered all of them, including weights and residuals, which do not fit for the pipeline of a
    70B model.
    """
    if jax.__version_info__ < (0, 12):
        _patch_shard_map_shardings()
    return jax.shard_map(op, in_specs=in_specs, out_specs=out_specs, axis_names=axes)


@functools.cache
def _patch_shard_map_shardings() -> None:
    """Makes `shard_map` of jax 0.10 and 0.11 pass XLA the shardings of types, as 0.12 does."""
    from jax._src import shard_map

    told = shard_map._shardy_shard_map_sharding

    def tell(context, mesh_, manual_axes, spec, aval):
        types = aval.sharding.mesh.axis_types or (AxisType.Auto,)
        return told(
            context,
            mesh_,
            manual_axes,
            spec if AxisType.Auto in types else aval.sharding.spec,
            aval,
        )

    shard_map._shardy_shard_map_sharding = tell


def _several(out_axes: mesh.Axes | tuple[mesh.Axes, ...]) -> bool:
    return any(isinstance(axes, tuple) for axes in out_axes)
