"""LoRA and DoRA: low-rank corrections of frozen matrices."""

import dataclasses
import math
import re
from typing import Any

from jax.nn import initializers

from llmjax.peft import names, targets
from llmjax.spec import Param, Tree
from llmjax.weights import Dora, Lora


@dataclasses.dataclass(frozen=True)
class LoraRule:
    """A different rank or alpha for some of the targets.

    Attributes:
        pattern: regular expression, searched for in the paths of the targets.
        rank: rank of matching targets; 0 keeps `LoraConfig.rank`.
        alpha: alpha of matching targets; 0 keeps `LoraConfig.alpha`.
    """

    pattern: str
    rank: int = 0
    alpha: float = 0.0

    def __post_init__(self) -> None:
        targets.require_pattern("lora.rules", self.pattern)
        if self.rank < 0 or self.alpha < 0 or not (self.rank or self.alpha):
            raise ValueError(
                f"lora.rules: pattern={self.pattern},rank={self.rank},alpha={self.alpha}: give a "
                "rank of 1 or more, an alpha above 0, or both"
            )


@dataclasses.dataclass(frozen=True)
class LoraConfig:
    """Low-rank adaptation (Hu et al. 2021), optionally with magnitudes (DoRA, Liu et al. 2024).

    Attributes:
        rank: R of the two factors.
        alpha: corrections are multiplied by alpha / rank.
        targets: regular expression, searched for in the paths of matrices ("layers/mlp/up"); by
            default it matches all projections of attention and MLPs. It may match embeddings and
            heads too; the correction of a tied table applies at both ends.
        rules: different ranks and alphas by path; the first rule that matches a target applies.
        rslora: multiply by alpha / √rank instead (Kalajdzievski 2023), so that larger ranks do not
            learn more slowly.
        dora: whether magnitudes are learned too; for projections, not for tables.
    """

    rank: int = 8
    alpha: float = 16.0
    targets: str = targets.PROJECTIONS
    rules: tuple[LoraRule, ...] = ()
    rslora: bool = False
    dora: bool = False

    def __post_init__(self) -> None:
        if self.rank < 1:
            raise ValueError(f"lora.rank={self.rank}: must be at least 1")
        if not self.alpha > 0:
            raise ValueError(f"lora.alpha={self.alpha}: must be above 0")
        targets.require_pattern("lora.targets", self.targets)

    def _rule(self, path: str) -> LoraRule | None:
        return next((rule for rule in self.rules if re.search(rule.pattern, path)), None)

    def rank_of(self, path: str) -> int:
        """R of the matrix with this path."""
        rule = self._rule(path)
        return rule.rank if rule and rule.rank else self.rank

    def scale_of(self, path: str) -> float:
        """The factor on the correction of the matrix with this path."""
        rule, rank = self._rule(path), self.rank_of(path)
        alpha = rule.alpha if rule and rule.alpha else self.alpha
        return alpha / (math.sqrt(rank) if self.rslora else rank)


def spec(declared: Tree, config: LoraConfig) -> Tree:
    """The spec with a `Lora`, or a `Dora` over one, in place of each target.

    As in PEFT, one factor is random (uniform within ±1/√inputs; normal for embeddings) and the
    other zero: the one on the output side, or, for a table [V, D], the one of its rows. So step 0
    equals the base model.

    Args:
        declared: the tree of `Param` of a model; weights may be quantized.
        config: LoRA options.

    Raises:
        ValueError: `targets` or a rule's pattern matches nothing; `targets` matches a parameter
            that is not a matrix or already has an adapter, or a table with `dora`.
    """
    found: list[str] = []

    def change(path: str, node: Any, param: Param) -> Any:
        found.append(path)
        if config.dora and param.table:
            raise ValueError(
                f"lora.dora=True: {path} is a table, for which DoRA is not supported; leave it out "
                "of lora.targets"
            )
        made = Lora(node, *_factors(param, config.rank_of(path)), config.scale_of(path))
        return Dora(made, _magnitude(param)) if config.dora else made

    changed = targets.replace(declared, "lora.targets", config.targets, change)
    for rule in config.rules:
        if not any(re.search(rule.pattern, path) for path in found):
            raise ValueError(
                f"lora.rules: {rule.pattern!r} matches none of the targets, which are "
                f"{targets.listed(found)}"
            )
    return changed


def _factors(param: Param, rank: int) -> tuple[Param, Param]:
    first, behind = param.stacked, param.stacked + param.inputs
    numbers = range(first)
    rows, columns = range(first, behind), range(behind, len(param.shape))
    if param.table:
        # The inputs of a table are its columns; these are their axes in b.
        inputs = [axis - param.inputs + 1 for axis in columns]
        wide = (
            initializers.normal(1.0) if param.table == "input" else _uniform(inputs, first, numbers)
        )
        inits = initializers.zeros, wide
    else:
        inits = _uniform(rows, -1, numbers), initializers.zeros
    shape, axes = param.shape, param.axes
    a = Param(
        (*shape[:behind], rank),
        (*axes[:behind], None),
        inits[0],
        *names.factor(param, "a"),
        inputs=param.inputs,
        added=True,
    )
    b = Param(
        (*shape[:first], rank, *shape[behind:]),
        (*axes[:first], None, *axes[behind:]),
        inits[1],
        *names.factor(param, "b"),
        inputs=1,
        added=True,
    )
    return a, b


def _uniform(inputs: Any, outputs: int, numbers: Any) -> initializers.Initializer:
    """Uniform within ±1/√inputs: torch's kaiming_uniform with a = √5."""
    return initializers.variance_scaling(
        1 / 3, "fan_in", "uniform", tuple(inputs), outputs, tuple(numbers)
    )


def _magnitude(param: Param) -> Param:
    """The magnitudes; `add` sets them to the norms of the base instead of drawing them."""
    over = range(param.stacked, param.stacked + param.inputs)
    return small(param, over, initializers.ones, names.magnitude(param))


def small(
    param: Param, over: range, init: initializers.Initializer, named: names.Name = names.NAMELESS
) -> Param:
    """A parameter with the matrix' shape, but length 1 along `over`, replicated on all devices."""
    return Param(
        tuple(1 if axis in over else length for axis, length in enumerate(param.shape)),
        tuple(name if axis < param.stacked else None for axis, name in enumerate(param.axes)),
        init,
        *named,
        added=True,
    )
