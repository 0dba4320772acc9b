"""Freezing parameters by path: predicates for `tree.partition` that select what trains."""

import re

from llmjax import tree
from llmjax.peft import targets
from llmjax.spec import Tree, is_param

# The parameters before the first layer.
_BELOW = ("embedding", "positions", "token_types", "embedding_norm", "embedding_projection")


def only(spec: Tree, pattern: str) -> tree.Predicate:
    """Trains only parameters that match the regular expression: `r"^head"` trains the head.

    Raises:
        ValueError: no path matches.
    """
    return _require(spec, pattern)


def all_but(spec: Tree, pattern: str) -> tree.Predicate:
    """Freezes the parameters that match the regular expression.

    Raises:
        ValueError: no path matches.
    """
    found = _require(spec, pattern)
    return lambda path, leaf: not found(path, leaf)


def first_layers(spec: Tree, count: int) -> tree.Predicate:
    """Freezes the first layers, and the embeddings before them.

    Raises:
        ValueError: the layers are stacked, or there are fewer of them.
    """
    layers = spec["layers"]
    if not isinstance(layers, list):
        raise ValueError(
            f"first_layers={count}: layers are stacked in one array per weight, which cannot be "
            "frozen in part; set model.scan_layers=False"
        )
    if not 0 <= count <= len(layers):
        raise ValueError(f"first_layers={count}: the model has {len(layers)} layers")

    def trains(path: str, leaf: object) -> bool:
        name, _, rest = path.partition("/")
        if name == "layers":
            return int(rest.partition("/")[0]) >= count
        return name not in _BELOW

    return trains


def _require(spec: Tree, pattern: str) -> tree.Predicate:
    targets.require_pattern("pattern", pattern)
    paths = tree.paths(spec, is_leaf=is_param)
    if not any(re.search(pattern, path) for path in paths):
        raise ValueError(f"pattern={pattern!r} matches no path; there are {targets.listed(paths)}")
    return tree.matches(pattern)
