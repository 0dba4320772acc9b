"""Selecting the weights that a method applies to."""

import dataclasses
import re
from collections.abc import Callable
from typing import Any

import jax

from llmjax import tree
from llmjax.spec import Param, Tree, is_param
from llmjax.weights import Int8, Nf4, is_kind

# The projections of attention and MLP.
PROJECTIONS = r"/(attention|mlp)/(query|key|value|out|gate|up|down)$"
SHOWN = 20  # paths that a message lists


def is_node(node: Any) -> bool:
    """Whether a node of a spec tree declares a weight, of any leaf type."""
    return is_param(node) or is_kind(node)


def matrix(node: Any) -> Param | None:
    """The `Param` of the matrix that a node declares, quantized or not; None if it is not one."""
    if isinstance(node, Int8):
        return node.values
    if isinstance(node, Nf4):
        *axes, last = node.codes.shape
        return dataclasses.replace(node.codes, shape=(*axes, 2 * last))
    return node if isinstance(node, Param) and node.inputs else None


def nodes(spec: Tree) -> dict[str, Any]:
    """Path → declaration of every weight, of any leaf type."""
    leaves = jax.tree.leaves(spec, is_leaf=is_node)
    return dict(zip(tree.paths(spec, is_leaf=is_node), leaves, strict=True))


def replace(spec: Tree, field: str, pattern: str, change: Callable[[str, Any, Param], Any]) -> Tree:
    """The spec with the node of each matrix whose path matches a pattern replaced.

    Args:
        spec: the spec of a model, quantized or not.
        field: the pattern's name in messages.
        pattern: a regular expression, searched for in paths.
        change: from a matrix' path, node and declaration to its new node.

    Raises:
        ValueError: the pattern matches nothing, or a parameter that is not a matrix or already has
            an adapter.
    """
    found = {path: node for path, node in nodes(spec).items() if re.search(pattern, path)}
    plain = {path: param for path, node in found.items() if (param := matrix(node)) is not None}
    wrong = [path for path in found if path not in plain]
    if not found or wrong:
        candidates = [path for path, node in nodes(spec).items() if matrix(node) is not None]
        taken = [path for path in wrong if is_kind(found[path])]
        what = "matches nothing"
        if wrong:
            what = f"matches {listed(wrong)}, which are not matrices"
        if taken:
            what = f"matches {listed(taken)}, which already have an adapter: merge it first"
        raise ValueError(f"{field}={pattern!r} {what}; the matrices are {listed(candidates)}")

    def one(path: str, node: Any) -> Any:
        return change(path, node, plain[path]) if path in plain else node

    return tree.map_with_path(one, spec, is_leaf=is_node)


def listed(paths: list[str]) -> str:
    """Paths for a message, with those of all layers listed once."""
    short = list(dict.fromkeys(re.sub(r"\b\d+\b", "*", path) for path in paths))
    more = f" and {len(short) - SHOWN} more" if len(short) > SHOWN else ""
    return ", ".join(short[:SHOWN]) + more


def require_pattern(field: str, pattern: str) -> None:
    """Raises ValueError, naming the field, unless the pattern is a regular expression."""
    try:
        re.compile(pattern)
    except re.error as error:
        raise ValueError(f"{field}={pattern!r} is not a regular expression: {error}") from error
