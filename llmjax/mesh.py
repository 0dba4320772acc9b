"""The device mesh, and the table that maps logical axes to mesh axes.

Parameters and activations only name logical axes ("batch", "embed", "heads"); `RULES` maps these
to mesh axes. Only `sharded` translates them to JAX shardings, so the same model functions run
without a mesh (in a notebook), under Explicit meshes (the default here) and under Auto meshes.
"""

import dataclasses
import functools
import math
from collections.abc import Callable, Mapping
from typing import Any, Literal

import einops
import jax
import numpy as np
from jax.experimental import mesh_utils
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from llmjax.checks import require_choices

Axes = tuple[str | None, ...]
Rules = Mapping[str, tuple[str, ...]]
ZeroStage = Literal[1, 2, 3]

# Outermost first: devices along the first axes communicate least and may be farthest apart.
AXES = ("stage", "data", "fsdp", "context", "tensor", "expert")

RULES: Rules = {
    # Outside of the layers, stages need not wait for each other, so they split the rows too.
    "batch": ("stage", "data", "fsdp", "expert"),
    "replicas": ("data",),
    "sequence": ("context",),
    # Between blocks, devices that split heads split the positions (Korthikanti et al. 2022).
    "stream": ("context", "tensor"),
    "tokens": ("context", "stage", "data", "fsdp", "expert"),  # rows and sequences together
    "layers": ("stage",),
    # The model width of weights is split over all devices that hold different tokens; that of
    # activations is never split. "outer_embed" is for weights outside the layers, "expert_embed"
    # for those of experts, which the axis expert already splits.
    "embed": ("fsdp", "context", "expert"),
    "outer_embed": ("stage", "fsdp", "context", "expert"),
    "expert_embed": ("fsdp", "context"),
    "heads": ("tensor",),
    "kv_heads": ("tensor",),
    "mlp": ("tensor",),
    "experts": ("expert",),
    "vocab": ("tensor",),
}


@dataclasses.dataclass(frozen=True)
class MeshConfig:
    """The number of devices along each mesh axis.

    Attributes:
        data: replicas, each with its part of the batch and a copy of the parameters. One axis may
            be -1: all remaining devices.
        fsdp: devices that share the batch and split parameters, gradients and optimizer state.
        tensor: devices that split heads, MLP and vocabulary of every layer.
        expert: devices that share the batch and split the experts of every layer: tokens are sent
            to their experts and back. The other parameters are split as over fsdp.
        stage: stages of a pipeline, each with some of the layers.
        context: devices that share every sequence (ring attention) and split the parameters as
            over fsdp.
        zero: what stays split even during a step (`train.zero`): 1, the optimizer state; 2, also
            the gradients; 3, also the parameters of layers.
    """

    data: int = -1
    fsdp: int = 1
    tensor: int = 1
    expert: int = 1
    stage: int = 1
    context: int = 1
    zero: ZeroStage = 3

    def __post_init__(self) -> None:
        require_choices(self, "mesh")
        sizes = {name: getattr(self, name) for name in AXES}
        for name, size in sizes.items():
            if size < 1 and size != -1:
                raise ValueError(f"mesh.{name}={size}: must be at least 1, or -1")
        if list(sizes.values()).count(-1) > 1:
            raise ValueError(f"mesh {sizes}: only one axis may be -1 (all remaining devices)")


def axis_sizes(config: MeshConfig, count: int) -> dict[str, int]:
    """The size of each mesh axis for `count` devices; -1 takes all remaining devices.

    Raises:
        ValueError: the sizes do not multiply to the number of devices.
    """
    sizes = [getattr(config, name) for name in AXES]
    known = math.prod(size for size in sizes if size != -1)
    if -1 in sizes:
        sizes[sizes.index(-1)] = max(count // known, 1)
    if math.prod(sizes) != count:
        wanted = " × ".join(f"{name}={size}" for name, size in zip(AXES, sizes, strict=True))
        raise ValueError(
            f"mesh {wanted} needs {math.prod(sizes)} devices, but there are {count}; "
            f"choose sizes whose product is {count}, or -1 for one of them"
        )
    return dict(zip(AXES, sizes, strict=True))


def make_mesh(config: MeshConfig, devices: list | None = None) -> jax.sharding.Mesh:
    """An Explicit mesh over `devices`, by default all.

    With several TPU slices, the outermost axes cross the data-center network between them: stage,
    then data, then fsdp, as needed for the number of slices.

    Raises:
        ValueError: the product of the sizes is not the number of devices, or the sizes of these
            axes do not divide over the slices.
    """
    devices = jax.devices() if devices is None else devices
    sizes = axis_sizes(config, len(devices))
    slices = len({getattr(device, "slice_index", 0) for device in devices})
    place: Callable = functools.partial(
        mesh_utils.create_device_mesh, list(sizes.values()), devices=devices
    )
    if slices > 1:
        across = _across(sizes, slices)
        within = [size // across[name] for name, size in sizes.items()]
        place = functools.partial(
            mesh_utils.create_hybrid_device_mesh, within, list(across.values()), devices
        )
    try:
        placed = place()
    except NotImplementedError:  # A size that is no product of torus lengths, such as 8 of 4×4×4.
        placed = place(allow_split_physical_axes=True)
    return jax.sharding.Mesh(placed, AXES, axis_types=(AxisType.Explicit,) * len(AXES))


def _across(sizes: dict[str, int], slices: int) -> dict[str, int]:
    """The number of slices along each axis."""
    across, left = dict.fromkeys(sizes, 1), slices
    for name in ("stage", "data", "fsdp"):
        across[name] = math.gcd(sizes[name], left)
        left //= across[name]
    if left > 1:
        raise ValueError(
            f"mesh stage={sizes['stage']} × data={sizes['data']} × fsdp={sizes['fsdp']} does not "
            f"divide over {slices} slices: choose sizes whose product is a multiple of {slices}"
        )
    return across


def abstract_mesh(
    config: MeshConfig, count: int, kind: str, platform: str
) -> jax.sharding.AbstractMesh:
    """An Explicit mesh over `count` absent devices, to trace programs for them.

    Args:
        config: sizes of the axes.
        count: number of devices.
        kind: their `device_kind`.
        platform: such as "tpu".

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
    """A mesh of the same devices for decoding, which supports neither stages nor context.

    The devices of the axes stage and context move to fsdp, where they still split the parameters.
    """
    if made.empty or made.shape["stage"] == made.shape["context"] == 1:
        return made
    devices = einops.rearrange(
        made.devices,
        "stage data fsdp context tensor expert -> 1 data (stage fsdp context) 1 tensor expert",
    )
    return jax.sharding.Mesh(devices, AXES, axis_types=made.axis_types)


def partition_spec(axes: Axes, rules: Rules = RULES) -> PartitionSpec:
    """The `PartitionSpec` of an array whose dimensions have these logical axes.

    Raises:
        ValueError: an axis is missing from the rules, or two axes use the same mesh axis.
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


def current_mesh() -> jax.sharding.AbstractMesh | None:
    """The mesh that is set, or None."""
    current = jax.sharding.get_abstract_mesh()
    return None if current.empty else current


def visible_spec(axes: Axes, current: jax.sharding.AbstractMesh) -> PartitionSpec:
    """The spec over mesh axes of more than one device that are not manual (inside `shard_map`).

    Axes of one device are left out, as they split nothing, and as a loop over layers may not scan
    a dimension whose spec names a mesh axis.
    """
    free = {name for name in free_axes(current) if current.shape[name] > 1}
    rules = {name: tuple(m for m in target if m in free) for name, target in RULES.items()}
    return partition_spec(axes, rules)


def axis_names(spec: PartitionSpec) -> set[str]:
    """The mesh axes in a spec."""
    parts = [part if isinstance(part, tuple) else (part,) for part in spec if part is not None]
    return {name for part in parts for name in part}


def free_axes(current: jax.sharding.AbstractMesh) -> set[str]:
    """The mesh axes that no enclosing `shard_map` has made manual."""
    axes = zip(current.axis_names, current.axis_types, strict=True)
    return {name for name, kind in axes if kind != AxisType.Manual}


def named_sharding(axes: Axes) -> NamedSharding | None:
    """The sharding of an array on the current mesh, or None when no mesh is set."""
    current = current_mesh()
    if current is None:
        return None
    concrete = jax.sharding.get_mesh()
    target: Any = current if concrete.empty else concrete
    return NamedSharding(target, visible_spec(axes, current))


def sharded(op: Callable, axes: Axes) -> Callable:
    """Wraps `op`, which takes `out_sharding`, to shard its result by logical axes.

    Without a mesh this is `op` itself; an Explicit mesh uses `out_sharding`, an Auto mesh a
    sharding constraint.
    """
    current = current_mesh()
    if current is None:
        return op
    spec = visible_spec(axes, current)
    if AxisType.Explicit in current.axis_types:
        return lambda *args, **kwargs: op(*args, out_sharding=spec, **kwargs)
    if AxisType.Auto in current.axis_types:
        return lambda *args, **kwargs: jax.lax.with_sharding_constraint(op(*args, **kwargs), spec)
    return op


def place(x: jax.Array, axes: Axes) -> jax.Array:
    """Reshards `x` by logical axes."""
    return sharded(_identity, axes)(x)


def _identity(x: jax.Array, out_sharding: PartitionSpec | None = None) -> jax.Array:
    return x if out_sharding is None else jax.reshard(x, out_sharding)


def spec_of(x: jax.Array) -> PartitionSpec | None:
    """The spec of an array on an Explicit mesh, from its type; None without such a mesh."""
    current = current_mesh()
    if current is None or AxisType.Explicit not in current.axis_types:
        return None
    return jax.typeof(x).sharding.spec


def size(axis: str | None) -> int:
    """The number of devices over which the current mesh splits a logical axis."""
    current = current_mesh()
    if current is None or axis is None:
        return 1
    return math.prod(current.shape.get(name, 1) for name in RULES[axis])


def devices() -> int:
    """The number of devices of the current mesh; 1 without one."""
    current = current_mesh()
    return 1 if current is None else current.size


def platform() -> str:
    """The platform of the current mesh's devices (real or abstract), or of the default device."""
    device = _abstract_device()
    return jax.default_backend() if device is None else device.platform


def device_kind() -> str:
    """The `device_kind` of the same devices, such as "NVIDIA H100 80GB HBM3"."""
    device = _abstract_device()
    return jax.devices()[0].device_kind if device is None else device.device_kind


def _abstract_device() -> jax.sharding.AbstractDevice | None:
    current = current_mesh()
    return None if current is None else current.abstract_device


def row_share() -> tuple[int, int]:
    """(i, n): this process reads the i-th of n equal shares of a batch's rows.

    Processes whose devices hold the same rows, because they split heads or sequences, read the
    same share.

    Raises:
        ValueError: processes share some of their rows but not all.
    """
    mine, shares = _shares()
    return shares.index(mine), len(shares)


def _shares() -> tuple[tuple[int, ...], list[tuple[int, ...]]]:
    """The row parts that this process's devices hold, and those of every share."""
    if current_mesh() is None:
        return (0,), [(0,)]
    return row_shares(jax.sharding.get_mesh(), jax.process_index())


def row_shares(
    made: jax.sharding.Mesh, process: int
) -> tuple[tuple[int, ...], list[tuple[int, ...]]]:
    """The row parts that a process's devices hold, and those of every share.

    Args:
        made: the mesh.
        process: index of the process.

    Raises:
        ValueError: processes share some of their rows but not all.
    """
    axes = [made.axis_names.index(name) for name in RULES["batch"] if name in made.axis_names]
    by_part = np.moveaxis(made.devices, axes, range(len(axes)))
    count = math.prod(by_part.shape[: len(axes)])
    parts: dict[int, set[int]] = {}
    for part, devices_of in enumerate(by_part.reshape(count, -1)):
        for device in devices_of:
            parts.setdefault(device.process_index, set()).add(part)
    shares = sorted({tuple(sorted(of)) for of in parts.values()})
    if sum(map(len, shares)) != count or len({*map(len, shares)}) > 1:
        raise ValueError(
            f"mesh {dict(made.shape)} splits rows into {count} parts that processes share only "
            "partly: choose sizes so that any two processes hold either the same rows or different "
            "ones, and all processes equally many"
        )
    return tuple(sorted(parts[process])), shares


def place_batch(batch: Mapping[str, np.ndarray]) -> dict[str, jax.Array]:
    """Shards host arrays [B, ...] as `shard_batch` does; every process passes all rows."""
    axes = ("batch", "sequence")
    return {
        name: jax.device_put(value, named_sharding(axes[: value.ndim]))
        for name, value in batch.items()
    }


def shard_batch(batch: Mapping[str, np.ndarray]) -> dict[str, jax.Array]:
    """Turns host arrays [B/n, ...] into device arrays [B, ...], split by rows over the mesh.

    Every process passes the rows of its share (`row_share`), such as tokens [B/n, S] or labels.
    Without a mesh, the arrays go to the default device.

    Raises:
        ValueError: the rows do not divide evenly over the devices.
    """
    if current_mesh() is None:
        return {name: jax.numpy.asarray(value) for name, value in batch.items()}
    mine, shares = _shares()
    rows = next(iter(batch.values())).shape[0] * len(shares)
    if rows % size("batch"):
        raise ValueError(
            f"a batch of {rows} rows does not divide over {size('batch')} devices "
            f"(mesh {' × '.join(RULES['batch'])}); choose a multiple as batch_size"
        )
    share = rows // size("batch")

    def spread(value: np.ndarray) -> jax.Array:
        def of_device(index: Any) -> np.ndarray:
            first = mine.index((index[0].start or 0) // share) * share
            return value[(slice(first, first + share), *index[1:])]

        sharding = named_sharding(("batch", "sequence")[: value.ndim])
        assert sharding is not None
        return jax.make_array_from_callback((rows, *value.shape[1:]), sharding, of_device)

    return {name: spread(value) for name, value in batch.items()}
