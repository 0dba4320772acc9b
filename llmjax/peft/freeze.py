"""What trains, by path: predicates for `tree.partition`."""

import re

from llmjax import tree
from llmjax.peft import targets
from llmjax.spec import Tree, is_param

# What tokens pass before the first layer.
_BELOW = ("embedding", "positions", "token_types", "embedding_norm", "embedding_projection")


def only(spec: Tree, pattern: str) -> tree.Predicate:
    """All but what the regular expression finds is frozen: `r"^head"` trains the head.

    Raises:
        ValueError: it finds no path.
    """
    return _require(spec, pattern)


def all_but(spec: Tree, pattern: str) -> tree.Predicate:
    """What the regular expression finds is frozen.

    Raises:
        ValueError: it finds no path.
    """
    found = _require(spec, pattern)
    return lambda path, leaf: not found(path, leaf)


def first_layers(spec: Tree, count: int) -> tree.Predicate:
    """The first layers are frozen, and the embeddings, which come before them.

    Raises:
        ValueError: the layers are stacked, or fewer.
    """
    layers = spec["layers"]
    if not isinstance(layers, list):
        raise ValueError(
            f"first_layers={count}: the layers are stacked in one array for each weight, of which "
            "no part can be frozen; set model.scan_layers=False"
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
        raise ValueError(f"pattern={pattern!r} finds no path; there are {targets.listed(paths)}")
    return tree.matches(pattern)
