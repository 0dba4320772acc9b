"""Factors that depend on a parameter's place in the tree: rules by path, and layer-wise decay."""

import dataclasses
import math
import re
from collections.abc import Sequence
from typing import Any

import numpy as np

from llmjax import tree
from llmjax.checks import nearest
from llmjax.spec import Param, is_param

# Parameters below the layers; all others outside the layers (final norm, heads) are above.
_BELOW = re.compile(r"/(embedding|positions|token_types|relative)")
_STACKED = -1  # all layers in one array


@dataclasses.dataclass(frozen=True)
class Rule:
    """A factor for the parameters whose path matches a regular expression.

    Attributes:
        pattern: the expression, searched for in paths such as layers/attention/query.
        factor: the factor on these parameters' value.
    """

    pattern: str
    factor: float

    def __post_init__(self) -> None:
        try:
            re.compile(self.pattern)
        except re.error as error:
            raise ValueError(f"pattern={self.pattern}: not a regular expression: {error}") from None
        if not 0 <= self.factor < math.inf:
            raise ValueError(f"factor={self.factor} of pattern={self.pattern}: must be 0 or more")


def factors(
    rules: Sequence[Rule], spec: Any, *, name: str = "rules", spare: Sequence[Rule] = ()
) -> Any:
    """The factor of each parameter: that of the first rule that matches its path, otherwise 1.

    Args:
        rules: in the order in which they are tried.
        spec: a tree of `Param`.
        name: name of the rules in messages.
        spare: rules that need not match anything, such as defaults for any model.

    Raises:
        ValueError: a rule applies to no parameter, because it matches no path, or only paths that
            earlier rules match.
    """
    paths, used = tree.paths(spec, is_param), set()

    def one(path: str, param: Param) -> float:
        del param
        for rule in rules:
            if re.search(rule.pattern, path):
                used.add(rule)
                return rule.factor
        return 1.0

    found = tree.map_with_path(one, spec, is_leaf=is_param)
    for rule in rules:
        if rule not in used and rule not in spare:
            raise ValueError(f"{name}: {_idle(rule.pattern, paths)}")
    return found


def _idle(pattern: str, paths: Sequence[str]) -> str:
    """The error message for a rule that applies to no parameter."""
    if any(re.search(pattern, path) for path in paths):
        return f"every parameter that pattern={pattern} matches is matched by an earlier rule"
    parts = {part for path in paths for part in path.split("/")}
    plain = re.sub(r"[^\w/]+", "", pattern)
    near = nearest(plain, sorted({*paths, *parts}), separator="/") or list(paths[:3])
    return f"pattern={pattern} matches none of the {len(paths)} parameters; near: {', '.join(near)}"


def layer_factors(decay: float, spec: Any) -> Any:
    """decay^d for parameters d layers below the heads; 1 for the heads and the final norm.

    d is 1 for the last of L layers, L for the first and L + 1 for the embeddings (Bao et al. 2022,
    table 8; Clark et al. 2020, appendix B; ULMFiT has decay = 1/2.6 between layers, Howard & Ruder
    2018, section 3.2). Layers are counted per model if there are several; the tree may hold only
    some of them.

    Args:
        decay: in (0, 1].
        spec: a tree of `Param`.

    Returns:
        A factor for each parameter: a float, or float32 [L, 1, ...] for stacked layers [L, ...].

    Raises:
        ValueError: the tree contains no layer.
    """
    counts: dict[str, int] = {}  # layers of each model

    def count(path: str, param: Param) -> None:
        model, layer = _place(path)
        if layer is not None:
            here = param.shape[0] if layer == _STACKED else layer + 1
            counts[model] = max(counts.get(model, 0), here)

    tree.map_with_path(count, spec, is_leaf=is_param)
    if not counts:
        raise ValueError(
            f"optimizer.layer_decay={decay}: no layer is trained, so layers cannot be counted; "
            "set it to 1"
        )

    def one(path: str, param: Param) -> Any:
        model, layer = _place(path)
        if layer is None:
            if not _BELOW.search(f"/{path}"):
                return 1.0
            return decay ** (counts.get(model, max(counts.values())) + 1)
        if layer != _STACKED:
            return decay ** (counts[model] - layer)
        powers = np.arange(counts[model], 0, -1).reshape(-1, *(1,) * (len(param.shape) - 1))
        return (decay**powers).astype(np.float32)

    return tree.map_with_path(one, spec, is_leaf=is_param)


def _place(path: str) -> tuple[str, int | None]:
    """The model of a parameter, from the start of its path, and its layer or None."""
    model, inside, rest = f"/{path}".partition("/layers/")
    if not inside:
        return _BELOW.split(f"/{path}")[0], None
    first = rest.partition("/")[0]
    return model, int(first) if first.isdecimal() else _STACKED
