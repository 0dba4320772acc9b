"""Operations shared by all methods: adding, training, removing, merging and swapping adapters.

Every method is a transform of a spec tree. It adds declarations with `Param.added`, either in a
leaf type around a weight (`Lora`, `Dora`, `Scaled`) or as new entries of a block's dict.
"""

import dataclasses
from typing import Any

import jax

from llmjax import mesh, tree
from llmjax import spec as specs
from llmjax.spec import Param, Tree, is_param
from llmjax.weights import WRAPPERS, Dora, Scaled, is_kind, materialize, norms, scaled_bias

Params = Any


def add(params: Params, spec: Tree, key: jax.Array, dtype: Any = None) -> Params:
    """Completes parameters to what a spec declares: existing ones are kept, missing ones are drawn.

    New values are created sharded on the current mesh, and only depend on the key and their path.
    Magnitudes of `Dora` are the norms of the existing weight.

    Args:
        params: some of the declared parameters, such as those without adapters.
        spec: declares all parameters.
        key: key of the new parameters.
        dtype: dtype of the new parameters; by default float32.

    Raises:
        ValueError: a parameter (its path is named) is not declared, or has another shape or type.
    """
    kept = _keep("", spec, params)
    missing = jax.tree.map(
        lambda param, value: param if value is None else None, spec, kept, is_leaf=_is_leaf
    )
    drawn = specs.init(key, missing, *(() if dtype is None else (dtype,)))
    made = tree.combine(kept, drawn)

    def measure(declared: Any, node: Any, was: Any) -> Any:
        if not isinstance(node, Dora) or was.magnitude is not None:
            return node
        found = norms(node.base).astype(node.magnitude.dtype)
        placed = mesh.place(found, declared.magnitude.axes)
        return dataclasses.replace(node, magnitude=placed)

    return jax.tree.map(measure, spec, made, kept, is_leaf=lambda node: isinstance(node, Dora))


def _is_leaf(node: Any) -> bool:
    return node is None or is_param(node)


def _keep(path: str, spec: Any, params: Any) -> Any:
    """The part of a spec's tree that `params` have, with None in place of the rest."""
    if params is None or isinstance(spec, Param):
        if isinstance(spec, Param) and params is not None:
            _require_fits(path, spec, params)
            return params
        return jax.tree.map(lambda param: None, spec, is_leaf=is_param)
    if isinstance(spec, WRAPPERS) and not isinstance(params, type(spec)):
        nothing = jax.tree.map(lambda param: None, spec, is_leaf=is_param)
        return nothing.replace(base=_keep(f"{path}/base".strip("/"), spec.base, params))
    children, others = _children(spec), _children(params)
    if type(spec) is not type(params) and not isinstance(spec, dict):
        raise ValueError(f"{path} has type {type(params).__name__}, not {type(spec).__name__}")
    if extra := [name for name in others if name not in children]:
        raise ValueError(
            f"{path} has {', '.join(map(str, extra))}, which the spec does not declare"
        )
    kept = {
        name: _keep(f"{path}/{name}".strip("/"), child, others.get(name))
        for name, child in children.items()
    }
    if isinstance(spec, dict):
        return kept
    return list(kept.values()) if isinstance(spec, list) else spec.replace(**kept)


def _children(node: Any) -> dict[Any, Any]:
    if isinstance(node, dict):
        return node
    if isinstance(node, list):
        return dict(enumerate(node))
    if not dataclasses.is_dataclass(node):
        return {}
    fields = [
        field for field in dataclasses.fields(node) if field.metadata.get("pytree_node", True)
    ]
    return {field.name: getattr(node, field.name) for field in fields}


def _require_fits(path: str, param: Param, value: Any) -> None:
    shape = getattr(value, "shape", None)
    if shape != param.shape:
        what = type(value).__name__ if shape is None else shape
        raise ValueError(f"{path} is {what}, but the spec declares {param.shape}")


def trained(spec: Tree) -> tree.Predicate:
    """A predicate for `tree.partition` that selects added parameters; the rest is frozen."""
    paths = tree.paths(spec, is_leaf=is_param)
    leaves = jax.tree.leaves(spec, is_leaf=is_param)
    added = {path for path, param in zip(paths, leaves, strict=True) if param.added}
    return lambda path, leaf: path in added


def without(params: Params, spec: Tree) -> Params:
    """The base model's parameters, the same arrays: a reference model without extra memory.

    Args:
        params: as declared by the spec.
        spec: the adapted spec.
    """
    if isinstance(spec, WRAPPERS):
        return without(params.base, spec.base)
    if isinstance(spec, dict):
        return {
            name: without(params[name], child)
            for name, child in spec.items()
            if not _is_added(child)
        }
    if isinstance(spec, list):
        return [without(*pair) for pair in zip(params, spec, strict=True)]
    return params


def _is_added(spec: Tree) -> bool:
    """Whether all parameters of a spec were added."""
    leaves = jax.tree.leaves(spec, is_leaf=is_param)
    return bool(leaves) and all(param.added for param in leaves)


def merge(params: Params) -> Params:
    """Merges corrections and factors into the weights, and dequantizes; all become plain arrays.

    The result computes the same as `params`. New entries of blocks, which cannot be merged, stay.
    """
    if is_kind(params):
        return materialize(params)
    if isinstance(params, list):
        return [merge(child) for child in params]
    if not isinstance(params, dict):
        return params
    merged = {name: merge(child) for name, child in params.items()}
    for name, child in params.items():
        if isinstance(child, Scaled) and f"{name}_bias" in merged:
            merged[f"{name}_bias"] = scaled_bias(child, merged[f"{name}_bias"])
    return merged


def extract(params: Params, spec: Tree) -> Params:
    """The added parameters, with None in place of the base model's arrays: an adapter to save."""
    return tree.partition(params, trained(spec))[0]


def attach(base: Params, adapter: Params) -> Params:
    """Attaches an adapter from `extract`, replacing an existing one.

    Several adapters can thus share the arrays of one base.

    Args:
        base: parameters without an adapter, or with one for the same targets, which is removed.
        adapter: from `extract`.

    Raises:
        ValueError: the adapter does not belong to this model.
    """
    if adapter is None:
        return attach(base.base, None) if isinstance(base, WRAPPERS) else base
    if isinstance(adapter, WRAPPERS):
        below = base.base if isinstance(base, type(adapter)) else base
        return dataclasses.replace(adapter, base=attach(below, adapter.base))
    if isinstance(adapter, list):
        if not isinstance(base, list) or len(base) != len(adapter):
            raise ValueError(f"the adapter has a list of {len(adapter)} layers, the model does not")
        return [attach(*pair) for pair in zip(base, adapter, strict=True)]
    if isinstance(adapter, dict):
        if not isinstance(base, dict | None):
            raise ValueError(f"the adapter has {', '.join(adapter)} where the model has an array")
        names = dict.fromkeys([*(base or {}), *adapter])
        return {name: attach((base or {}).get(name), adapter.get(name)) for name in names}
    return adapter if not is_kind(adapter) else base
