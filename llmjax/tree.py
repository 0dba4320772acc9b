"""Trees of parameters: paths, selection by path, partition and its inverse."""

import re
import zlib
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

Tree = Any
Predicate = Callable[[str, Any], bool]


def path_name(path: tuple) -> str:
    """A key path as text: "layers/attention/query"."""
    return jax.tree_util.keystr(path, simple=True, separator="/")


def path_hash(path: str) -> int:
    """A 31-bit hash of a path that is stable across processes and versions."""
    return zlib.crc32(path.encode()) & 0x7FFFFFFF


def map_with_path(function: Callable, tree: Tree, *rest: Tree, is_leaf=None) -> Tree:
    """`jax.tree.map` with the path as the first argument of `function`."""
    return jax.tree_util.tree_map_with_path(
        lambda path, *leaves: function(path_name(path), *leaves), tree, *rest, is_leaf=is_leaf
    )


def paths(tree: Tree, is_leaf=None) -> list[str]:
    """The path of every leaf, in the order of `jax.tree.leaves`."""
    leaves = jax.tree_util.tree_leaves_with_path(tree, is_leaf=is_leaf)
    return [path_name(path) for path, _ in leaves]


def matches(pattern: str) -> Predicate:
    """A predicate that is true if the regular expression is found in a leaf's path."""
    compiled = re.compile(pattern)
    return lambda path, leaf: compiled.search(path) is not None


def partition(tree: Tree, predicate: Predicate) -> tuple[Tree, Tree]:
    """Splits a tree into the leaves that the predicate selects and the rest.

    Both halves keep the structure, with None in place of the other half's leaves. To train only
    part of a model, differentiate with respect to the first and close over the second.
    """
    picked = map_with_path(lambda path, leaf: leaf if predicate(path, leaf) else None, tree)
    others = map_with_path(lambda path, leaf: None if predicate(path, leaf) else leaf, tree)
    return picked, others


def combine(first: Tree, second: Tree) -> Tree:
    """Inverts `partition`. A leaf of the first half may have become a tree."""
    return jax.tree.map(
        lambda b, a: a if b is None else b, second, first, is_leaf=lambda leaf: leaf is None
    )


def cast(tree: Tree, dtype: Any) -> Tree:
    """Casts floating-point leaves to `dtype`; others are unchanged."""

    def one(leaf):
        return leaf.astype(dtype) if jnp.issubdtype(leaf.dtype, jnp.floating) else leaf

    return jax.tree.map(one, tree)


def unstack(tree: Tree) -> list[Tree]:
    """Splits the leading axis of every leaf into a list of trees, one per layer.

    Uses `lax.split` because its transpose is one concatenation; that of indexing adds a
    zero-padded copy of the whole stack for each layer.
    """
    leaves, structure = jax.tree.flatten(tree)
    if not leaves:
        raise ValueError("tree.unstack needs at least one array")
    split = [
        [jnp.squeeze(part, 0) for part in jax.lax.split(leaf, (1,) * leaf.shape[0], axis=0)]
        for leaf in leaves
    ]
    return [jax.tree.unflatten(structure, parts) for parts in zip(*split, strict=True)]


def stack(layers: list[Tree]) -> Tree:
    """Inverts `unstack`."""
    return jax.tree.map(lambda *leaves: jnp.stack(leaves), *layers)
