"""The device mesh and the one table from logical axes to mesh axes.

Parameters and activations name only logical axes ("batch", "embed", "heads"); `RULES` says which
mesh axes they are split over. `sharded` is the single place where that turns into something that
JAX understands, so the same model functions run on plain arrays in a notebook (no mesh), under
Explicit meshes (the default here) and under Auto meshes.
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

# The outermost first, whose devices may be farthest apart: they talk least.
AXES = ("stage", "data", "fsdp", "context", "tensor", "expert")

RULES: Rules = {
    # Outside of the layers, where no stage has to wait for another, stages share the rows too.
    "batch": ("stage", "data", "fsdp", "expert"),
    "sequence": ("context",),
    # Between blocks, devices that split heads share the positions (Korthikanti et al. 2022).
    "stream": ("context", "tensor"),
    "tokens": ("context", "stage", "data", "fsdp", "expert"),  # rows and sequences together
    "layers": ("stage",),
    # The model width of weights, over all devices with tokens of their own; that of activations is
    # never split. Then the same of weights that are of no layer, and of experts', split themselves.
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
    """How many devices share each kind of work.

    Attributes:
        data: replicas, each with its part of the batch and a copy of the parameters; -1, for one
            axis, means all the devices that the others leave.
        fsdp: devices that share the batch and split parameters, gradients and optimizer state.
        tensor: devices that split heads, MLP and vocabulary of every layer.
        expert: devices that share the batch and split the experts of every layer: tokens travel to
            their experts and back. The other parameters are split as over fsdp.
        stage: stages of a pipeline, each with some of the layers.
        context: devices that share every sequence (ring attention), and split the parameters as
            over fsdp.
        zero: what devices split during a step, too (`train.zero`): 1 the optimizer state, 2 and the
            gradients, 3 and the parameters of layers.
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

    Of several slices of TPUs, which only the data center's network joins, the outermost axes cross
    that network: stage, then data, then fsdp, as far as the number of slices needs.

    Raises:
        ValueError: the sizes do not multiply to the number of devices, or those of these axes do
            not divide over the slices.
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
    except NotImplementedError:  # A size that no product of a torus' lengths is, 8 of 4×4×4 say.
        placed = place(allow_split_physical_axes=True)
    return jax.sharding.Mesh(placed, AXES, axis_types=(AxisType.Explicit,) * len(AXES))


def _across(sizes: dict[str, int], slices: int) -> dict[str, int]:
    """How many slices each axis crosses."""
    across, left = dict.fromkeys(sizes, 1), slices
    for name in ("stage", "data", "fsdp"):
        across[name] = math.gcd(sizes[name], left)
        left //= across[name]
    if left > 1:
        raise ValueError(
            f"mesh stage={sizes['stage']} × data={sizes['data']} × fsdp={sizes['fsdp']} does not "
            f"divide over {slices} slices: choose sizes of these axes that do"
        )
    return across


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


def current_mesh() -> jax.sharding.AbstractMesh | None:
    """That which is set, or None."""
    current = jax.sharding.get_abstract_mesh()
    return None if current.empty else current


def visible_spec(axes: Axes, current: jax.sharding.AbstractMesh) -> PartitionSpec:
    """The spec over those mesh axes that split anything and are not manual (inside `shard_map`).

    An axis of one device splits nothing, and a loop over layers may not run over one that does.
    """
    free = {name for name in free_axes(current) if current.shape[name] > 1}
    rules = {name: tuple(m for m in target if m in free) for name, target in RULES.items()}
    return partition_spec(axes, rules)


def axis_names(spec: PartitionSpec) -> set[str]:
    """The mesh axes in a spec."""
    parts = [part if isinstance(part, tuple) else (part,) for part in spec if part is not None]
    return {name for part in parts for name in part}


def free_axes(current: jax.sharding.AbstractMesh) -> set[str]:
    """The mesh axes that no `shard_map` around here has taken."""
    axes = zip(current.axis_names, current.axis_types, strict=True)
    return {name for name, kind in axes if kind != AxisType.Manual}


def named_sharding(axes: Axes) -> NamedSharding | None:
    """The sharding of an array on the current mesh, or None when no mesh is set."""
    current = current_mesh()
    if current is None:
        return None
    concrete = jax.sharding.get_mesh() if hasattr(jax.sharding, "get_mesh") else None
    target: Any = concrete if concrete is not None and not concrete.empty else current
    return NamedSharding(target, visible_spec(axes, current))


def sharded(op: Callable, axes: Axes) -> Callable:
    """`op`, which takes `out_sharding`, with its result placed by logical axes.

    Without a mesh it is `op` itself; on an Explicit mesh the result's type says where it lies;
    on an Auto mesh the compiler is told by a constraint.
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
    """`x`, moved to where an array with these logical axes lies."""
    return sharded(_identity, axes)(x)


def _identity(x: jax.Array, out_sharding: PartitionSpec | None = None) -> jax.Array:
    return x if out_sharding is None else jax.reshard(x, out_sharding)


def spec_of(x: jax.Array) -> PartitionSpec | None:
    """How an array is split over an Explicit mesh, which its type says; None without one."""
    current = current_mesh()
    if current is None or AxisType.Explicit not in current.axis_types:
        return None
    return jax.typeof(x).sharding.spec


def size(axis: str | None) -> int:
    """Over how many devices the current mesh splits a logical axis."""
    current = current_mesh()
    if current is None or axis is None:
        return 1
    return math.prod(current.shape.get(name, 1) for name in RULES[axis])


def devices() -> int:
    """Of the current mesh; 1 without one."""
    current = current_mesh()
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
    current = current_mesh()
    return None if current is None else current.abstract_device


def row_share() -> tuple[int, int]:
    """(i, n): this process reads the i-th of n equal shares of a batch's rows.

    Processes whose devices share all their rows, since what they split is heads or sequences,
    read the same share.

    Raises:
        ValueError: processes that share some of their rows and not all.
    """
    mine, shares = _shares()
    return shares.index(mine), len(shares)


def _shares() -> tuple[tuple[int, ...], list[tuple[int, ...]]]:
    """The parts of the rows that this process's devices have, and those of every share."""
    if current_mesh() is None:
        return (0,), [(0,)]
    return row_shares(jax.sharding.get_mesh(), jax.process_index())


def row_shares(
    made: jax.sharding.Mesh, process: int
) -> tuple[tuple[int, ...], list[tuple[int, ...]]]:
    """The parts of the rows that a process's devices have, and those of every share.

    Args:
        made: the mesh.
        process: its number.

    Raises:
        ValueError: processes that share some of their rows and not all.
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
            f"mesh {dict(made.shape)} cuts rows into {count} parts, of which processes share some "
            "and not all: choose sizes so that a process's devices have all parts of their rows, "
            "or all processes the same number of them"
        )
    return tuple(sorted(parts[process])), shares


def place_batch(batch: Mapping[str, np.ndarray]) -> dict[str, jax.Array]:
    """Host arrays [B, ...] of every process, where `shard_batch` puts them, in their order."""
    axes = ("batch", "sequence")
    return {
        name: jax.device_put(value, named_sharding(axes[: value.ndim]))
        for name, value in batch.items()
    }


def shard_batch(batch: Mapping[str, np.ndarray]) -> dict[str, jax.Array]:
    """Host arrays [B/n, ...] as device arrays [B, ...], split by rows over the mesh.

    Every process gives the rows of its share (`row_share`): tokens [B/n, S], or labels, say.
    Without a mesh, the arrays go to the default device.

    Raises:
        ValueError: the rows do not divide over the devices.
    """
    if current_mesh() is None:
        return {name: jax.numpy.asarray(value) for name, value in batch.items()}
    mine, shares = _shares()
    rows = next(iter(batch.values())).shape[0] * len(shares)
    if rows % size("batch"):
        raise ValueError(
            f"a batch of {rows} rows does not divide over {size('batch')} devices "
            f"(mesh {' × '.join(RULES['batch'])}); choose a batch_size that does"
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
