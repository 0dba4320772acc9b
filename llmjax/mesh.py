"""The device mesh and the one table from logical axes to mesh axes.

Parameters and activations name only logical axes ("batch", "embed", "heads"); `RULES` says which
mesh axes they are split over. `sharded` is the single place where that turns into something that
JAX understands, so the same model functions run on plain arrays in a notebook (no mesh), under
Explicit meshes (the default here) and under Auto meshes.
"""

import dataclasses
import math
from collections.abc import Callable, Mapping
from typing import Any

import einops
import jax
import numpy as np
from jax.sharding import AxisType, NamedSharding, PartitionSpec

Axes = tuple[str | None, ...]
Rules = Mapping[str, tuple[str, ...]]

# The outermost first, whose devices may be farthest apart: they talk least.
AXES = ("stage", "data", "fsdp", "context", "tensor", "expert")

RULES: Rules = {
    # Outside of the layers, where no stage has to wait for another, stages share the rows too.
    "batch": ("stage", "data", "fsdp"),
    "sequence": ("context",),
    "tokens": ("context", "stage", "data", "fsdp"),  # rows and sequences together
    "layers": ("stage",),
    "embed": ("fsdp",),  # the model width of weights; of activations it is never split
    "outer_embed": ("stage", "fsdp"),  # the same of weights that are of no layer
    "heads": ("tensor",),
    "kv_heads": ("tensor",),
    "mlp": ("tensor",),
    "experts": ("expert",),
    "vocab": ("tensor",),
}


@dataclasses.dataclass(frozen=True)
class MeshConfig:
    """How many devices share each kind of work.

    Attributes:
        data: replicas, each with its part of the batch and a copy of the parameters; -1, for one
            axis, means all the devices that the others leave.
        fsdp: devices that share the batch and split parameters and optimizer state (ZeRO-3).
        tensor: devices that split heads, MLP and vocabulary of every layer.
        expert: devices that split the experts of every layer, each with all tokens of its batch.
        stage: stages of a pipeline, each with some of the layers.
        context: devices that share every sequence (ring attention).
    """

    data: int = -1
    fsdp: int = 1
    tensor: int = 1
    expert: int = 1
    stage: int = 1
    context: int = 1

    def __post_init__(self) -> None:
        sizes = dataclasses.asdict(self)
        for name, size in sizes.items():
            if size < 1 and size != -1:
                raise ValueError(f"mesh.{name}={size}: a mesh axis has 1 or more devices, or -1")
        if list(sizes.values()).count(-1) > 1:
            raise ValueError(f"mesh {sizes}: only one axis may be -1 (all remaining devices)")


def axis_sizes(config: MeshConfig, count: int) -> dict[str, int]:
    """The devices along each axis of a mesh of `count`; -1 takes what the other axes leave.

    Raises:
        ValueError: the sizes do not multiply to the number of devices.
    """
    sizes = [getattr(config, name) for name in AXES]
    known = math.prod(size for size in sizes if size != -1)
    if -1 in sizes:
        sizes[sizes.index(-1)] = count // known
    if math.prod(sizes) != count:
        wanted = " × ".join(f"{name}={size}" for name, size in zip(AXES, sizes, strict=True))
        raise ValueError(
            f"mesh {wanted} needs {math.prod(sizes)} devices and there are {count}; "
            "choose sizes whose product is that, or -1 for one of them"
        )
    return dict(zip(AXES, sizes, strict=True))


def make_mesh(config: MeshConfig, devices: list | None = None) -> jax.sharding.Mesh:
    """An Explicit mesh over `devices`, by default all.

    Raises:
        ValueError: the sizes do not multiply to the number of devices.
    """
    devices = jax.devices() if devices is None else devices
    sizes = axis_sizes(config, len(devices))
    return jax.make_mesh(tuple(sizes.values()), AXES, devices=devices)


def abstract_mesh(
    config: MeshConfig, count: int, kind: str, platform: str
) -> jax.sharding.AbstractMesh:
    """The Explicit mesh over `count` devices that are not here, to trace programs for them.

    Args:
        config: of the axes.
        count: of the devices.
        kind: what they call themselves.
        platform: "tpu" say.

    Raises:
        ValueError: the sizes do not multiply to the number of devices.
    """
    sizes = axis_sizes(config, count)
    return jax.sharding.AbstractMesh(
        tuple(sizes.values()),
        AXES,
        axis_types=(AxisType.Explicit,) * len(AXES),
        abstract_device=jax.sharding.AbstractDevice(kind, 1, platform),
    )


def for_decoding(made: jax.sharding.Mesh) -> jax.sharding.Mesh:
    """The same devices for a model that writes, which has neither stages nor long sequences.

    Those of the axes stage and context join fsdp's, and go on sharing the parameters.
    """
    if made.shape["stage"] == made.shape["context"] == 1:
        return made
    devices = einops.rearrange(
        made.devices,
        "stage data fsdp context tensor expert -> 1 data (stage fsdp context) 1 tensor expert",
    )
    return jax.sharding.Mesh(devices, AXES, axis_types=made.axis_types)


def partition_spec(axes: Axes, rules: Rules = RULES) -> PartitionSpec:
    """The `PartitionSpec` of an array whose dimensions have these logical axes.

    Raises:
        ValueError: an axis that the rules do not know, or two that claim one mesh axis.
    """
    unknown = [axis for axis in axes if axis is not None and axis not in rules]
    if unknown:
        raise ValueError(f"unknown logical axes {unknown}: the rules have {sorted(rules)}")
    parts = [rules[axis] if axis is not None else () for axis in axes]
    used = [name for part in parts for name in part]
    if len(set(used)) < len(used):
        raise ValueError(f"logical axes {axes} would split two dimensions over one mesh axis")
    return PartitionSpec(
        *(part if len(part) > 1 else (part[0] if part else None) for part in parts)
    )


def _current() -> jax.sharding.AbstractMesh | None:
    current = jax.sharding.get_abstract_mesh()
    return None if current.empty else current


def _visible(axes: Axes, current: jax.sharding.AbstractMesh) -> PartitionSpec:
    """The spec over those mesh axes that split anything and are not manual (inside `shard_map`).

    An axis of one device splits nothing, and a loop over layers may not run over one that does.
    """
    free = {name for name in _free(current) if current.shape[name] > 1}
    rules = {name: tuple(m for m in target if m in free) for name, target in RULES.items()}
    return partition_spec(axes, rules)


def _names(spec: PartitionSpec) -> set[str]:
    """The mesh axes in a spec."""
    parts = [part if isinstance(part, tuple) else (part,) for part in spec if part is not None]
    return {name for part in parts for name in part}


def named_sharding(axes: Axes) -> NamedSharding | None:
    """The sharding of an array on the current mesh, or None when no mesh is set."""
    current = _current()
    if current is None:
        return None
    concrete = jax.sharding.get_mesh() if hasattr(jax.sharding, "get_mesh") else None
    target: Any = concrete if concrete is not None and not concrete.empty else current
    return NamedSharding(target, _visible(axes, current))


def sharded(op: Callable, axes: Axes) -> Callable:
    """`op`, which takes `out_sharding`, with its result placed by logical axes.

    Without a mesh it is `op` itself; on an Explicit mesh the result's type says where it lies;
    on an Auto mesh the compiler is told by a constraint.
    """
    current = _current()
    if current is None:
        return op
    spec = _visible(axes, current)
    if AxisType.Explicit in current.axis_types:
        return lambda *args, **kwargs: op(*args, out_sharding=spec, **kwargs)
    if AxisType.Auto in current.axis_types:
        return lambda *args, **kwargs: jax.lax.with_sharding_constraint(op(*args, **kwargs), spec)
    return op


def on_parts(
    op: Callable,
    in_axes: tuple[Axes, ...],
    out_axes: Axes | tuple[Axes, ...],
    *,
    check: bool = True,
) -> Callable:
    """`op`, run by every device on its parts of the arguments (`jax.shard_map`).

    As an einsum's, a result is summed over what splits an argument and not the result. Without
    a mesh it is `op` itself.

    Args:
        op: of arrays to one array or a tuple of them; it sees the lengths that a device has.
        in_axes: the logical axes of each argument, which is moved there first.
        out_axes: those of the result, or of each.
        check: whether jax checks what varies over devices, of which Pallas' interpreter knows
            nothing.
    """
    current = _current()
    if current is None:
        return op
    if AxisType.Manual in current.axis_types:
        return _within(op, in_axes, out_axes, check)
    return _mapped(op, in_axes, out_axes, check)


def _mapped(op, in_axes, out_axes, check: bool) -> Callable:
    """`on_parts` by one `shard_map`."""
    current = _current()
    assert current is not None
    specs = tuple(_visible(axes, current) for axes in in_axes)
    several = _several(out_axes)
    results = tuple(_visible(axes, current) for axes in (out_axes if several else (out_axes,)))
    names = set().union(*map(_names, specs))

    def others(spec):
        return tuple(sorted(names - _names(spec)))

    def part(*parts):
        # The gradient of what several devices hold alike is summed over them.
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
        axis_names=_free(current),
        check_vma=check,
    )
    return lambda *args: mapped(*map(place, args, in_axes))


def _within(op, in_axes, out_axes, check: bool) -> Callable:
    """`on_parts` within another `shard_map`, where jax (0.10 to 0.12) cannot take it apart.

    To find a gradient, or what a loop need not do again, it cuts an inner `shard_map` in two, and
    says of what passes from one to the other that it is split over the outer one's axes, too;
    unless it is not to check that. And the gradient is a `shard_map` of its own.
    """
    current = _current()
    assert current is not None
    outer = tuple(name for name in current.axis_names if name not in _free(current))
    listed: tuple[Axes, ...] = out_axes if _several(out_axes) else (out_axes,)

    @jax.custom_vjp
    def run(*args):
        found = _mapped(op, in_axes, out_axes, check=False)(*args)
        # What was not checked is not known to vary.
        return jax.tree.map(lambda x: jax.lax.pcast(x, outer, to="varying"), found)

    def forward(*args):
        return run(*args), args

    def backward(args, cotangents):
        places = [i for i, x in enumerate(args) if jax.numpy.issubdtype(x.dtype, np.floating)]

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


def _several(out_axes: Axes | tuple[Axes, ...]) -> bool:
    return any(isinstance(axes, tuple) for axes in out_axes)


def _free(current: jax.sharding.AbstractMesh) -> set[str]:
    """The mesh axes that no `shard_map` around here has taken."""
    axes = zip(current.axis_names, current.axis_types, strict=True)
    return {name for name, kind in axes if kind != AxisType.Manual}


def place(x: jax.Array, axes: Axes) -> jax.Array:
    """`x`, moved to where an array with these logical axes lies."""
    return sharded(_identity, axes)(x)


def _identity(x: jax.Array, out_sharding: PartitionSpec | None = None) -> jax.Array:
    return x if out_sharding is None else jax.reshard(x, out_sharding)


def size(axis: str | None) -> int:
    """Over how many devices the current mesh splits a logical axis."""
    current = _current()
    if current is None or axis is None:
        return 1
    return math.prod(current.shape.get(name, 1) for name in RULES[axis])


def devices() -> int:
    """Of the current mesh; 1 without one."""
    current = _current()
    return 1 if current is None else current.size


def platform() -> str:
    """Of the current mesh's devices, which need not be here; without one, of the default device."""
    device = _abstract_device()
    return jax.default_backend() if device is None else device.platform


def device_kind() -> str:
    """What the same devices call themselves, "NVIDIA H100 80GB HBM3" say."""
    device = _abstract_device()
    return jax.devices()[0].device_kind if device is None else device.device_kind


def _abstract_device() -> jax.sharding.AbstractDevice | None:
    current = _current()
    return None if current is None else current.abstract_device


def shard_batch(batch: Mapping[str, np.ndarray]) -> dict[str, jax.Array]:
    """Host arrays [B/processes, ...] as device arrays [B, ...], split by rows over the mesh.

    Every process gives its own rows: tokens [B, S], or labels [B], say. Without a mesh, the arrays
    go to the default device.

    Raises:
        ValueError: the rows do not divide over the devices.
    """
    if _current() is None:
        return {name: jax.numpy.asarray(value) for name, value in batch.items()}
    rows = next(iter(batch.values())).shape[0] * jax.process_count()
    if rows % size("batch"):
        raise ValueError(
            f"a batch of {rows} rows does not divide over {size('batch')} devices "
            f"(mesh {' × '.join(RULES['batch'])}); choose a batch_size that does"
        )
    return {
        name: jax.make_array_from_process_local_data(
            named_sharding(("batch", "sequence")[: value.ndim]), value
        )
        for name, value in batch.items()
    }
