"""How checkpoints describe and store the arrays of a state."""

from collections.abc import Mapping
from typing import Any

import jax
from etils import epath
from jax.sharding import AbstractMesh, NamedSharding, PartitionSpec, SingleDeviceSharding


def is_key(leaf: Any) -> bool:
    """Whether a leaf is a typed PRNG key."""
    return jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.prng_key)


def without_key(leaf: Any) -> Any:
    """Replaces a typed PRNG key by its integers, because Orbax stores plain arrays."""
    return jax.random.key_data(leaf) if is_key(leaf) else leaf


def with_key(abstract: Any, leaf: jax.Array) -> jax.Array:
    """Restores the type of a leaf: integers become a typed PRNG key if `abstract` is one."""
    if not is_key(abstract):
        return leaf
    generators: list[Any] = []  # `key_impl` takes a traced key but not an abstract one
    jax.eval_shape(lambda key: generators.append(jax.random.key_impl(key)), abstract)
    return jax.random.wrap_key_data(leaf, impl=generators[0])


def placed(leaf: Any) -> jax.ShapeDtypeStruct:
    """The plain array to read; an abstract mesh is replaced by the current mesh."""
    sharding = getattr(leaf, "sharding", None)
    current = jax.sharding.get_mesh()
    if isinstance(sharding, NamedSharding) and isinstance(sharding.mesh, AbstractMesh):
        sharding = NamedSharding(current, sharding.spec)
    elif sharding is None and not current.empty:
        sharding = NamedSharding(current, PartitionSpec())
    elif sharding is None:
        sharding = SingleDeviceSharding(jax.devices()[0])
    if is_key(leaf):
        leaf = jax.eval_shape(jax.random.key_data, leaf)
    return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding)


def describe(fields: Mapping[str, Any]) -> dict[str, list[Any]]:
    """Name → [dtype, shape] of every array."""
    leaves, _ = jax.tree_util.tree_flatten_with_path(fields)
    return {
        jax.tree_util.keystr(path, simple=True, separator="/"): [str(leaf.dtype), list(leaf.shape)]
        for path, leaf in leaves
    }


def check_fit(folder: epath.Path, has: dict, wants: dict, whole: bool) -> None:
    """Raises ValueError unless the saved arrays match the wanted ones; dtypes may differ."""
    problems = [f"{name} is missing" for name in wants if name not in has]
    if whole:
        problems += [f"{name} is unexpected" for name in has if name not in wants]
    for name in wants.keys() & has.keys():
        (dtype, shape), (wanted_dtype, wanted_shape) = has[name], wants[name]
        keys = dtype.startswith("key<") or wanted_dtype.startswith("key<")
        if shape != wanted_shape or (keys and dtype != wanted_dtype):
            problems.append(f"{name} is {dtype}{shape}, not {wanted_dtype}{wanted_shape}")
    if problems:
        more = f" (and {len(problems) - 5} more)" if len(problems) > 5 else ""
        raise ValueError(
            f"{folder} is from another model or optimizer: {'; '.join(problems[:5])}{more}. "
            "Use the configuration that made it, or a new run folder"
        )
