"""The search space of a sweep: fields of a recipe, each with a range or choices."""

import dataclasses
import math
import typing
from collections.abc import Mapping, Sequence
from typing import Any, Literal

from experiments import fields
from experiments.flags import FlagError
from experiments.recipe import Recipe, Training
from llmjax.checks import nearest

Value = float | int | str


@dataclasses.dataclass(frozen=True)
class Dimension:
    """One field and its values.

    Attributes:
        leaf: the field.
        kind: int and float are ranges; choice, values as written on the command line.
        low: lower end of a range.
        high: upper end of a range.
        step: distance between values of a range; None for a continuous range.
        log: whether a range is searched on a logarithmic scale.
        choices: the values of kind choice.
    """

    leaf: fields.Leaf
    kind: Literal["int", "float", "choice"]
    low: float = 0.0
    high: float = 0.0
    step: float | None = None
    log: bool = False
    choices: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        """The field's name, as on the command line."""
        return self.leaf.name

    def suggest(self, trial: Any) -> Value:
        """A value for an Optuna trial."""
        if self.kind == "choice":
            return trial.suggest_categorical(self.name, self.choices)
        if self.kind == "int":
            low, high, step = int(self.low), int(self.high), int(self.step or 1)
            return trial.suggest_int(self.name, low, high, step=step, log=self.log)
        return trial.suggest_float(self.name, self.low, self.high, step=self.step, log=self.log)


def parse(text: str, config: type = Recipe) -> Dimension:
    """Parses FIELD=VALUES, for a field of a config class.

    Values are LOW:HIGH, LOW:HIGH:STEP or log:LOW:HIGH for numbers, or choices separated by commas,
    or by | if values contain commas.

    Raises:
        FlagError: there is no such field, or it cannot have such values.
    """
    name, _, values = text.partition("=")
    leaves = {leaf.name: leaf for leaf in fields.leaves(config)}
    if name not in leaves:
        near = ", ".join(nearest(name, list(leaves))) or "see --help"
        raise FlagError(f"--sweep={text}: no such field; nearest: {near}")
    leaf = leaves[name]
    try:
        kind = _number(leaf.annotation)
        if kind and ":" in values:
            return _range(leaf, kind, values)
        return _choices(leaf, values)
    except ValueError as error:
        raise FlagError(f"--sweep={text}: {error}") from None


def parse_all(texts: Sequence[str], config: type = Recipe) -> tuple[Dimension, ...]:
    """Parses every FIELD=VALUES of a config class; each field once.

    Raises:
        FlagError: a text cannot be parsed, a field is given twice, or there is none.
    """
    if not texts:
        raise FlagError("--sweep is missing: give --sweep=FIELD=VALUES for each field to search")
    space = tuple(parse(text, config) for text in texts)
    names = [dimension.name for dimension in space]
    if twice := {name for name in names if names.count(name) > 1}:
        raise FlagError(f"--sweep={min(twice)}=... is given twice: give each field once")
    return space


def apply(recipe: Training, space: Sequence[Dimension], values: Mapping[str, Value]) -> Any:
    """The recipe with these values.

    Raises:
        ValueError: they do not fit together.
    """
    changes = {
        dimension.leaf.path: fields.parse(dimension.leaf.annotation, str(values[dimension.name]))
        if dimension.kind == "choice"
        else values[dimension.name]
        for dimension in space
    }
    return fields.replace(recipe, changes)


def _number(annotation: Any) -> Literal["int", "float"] | None:
    """The kind of number that a field holds, whether or not it is optional; None for tuples."""
    if typing.get_origin(annotation) is tuple:
        return None
    for option in (annotation, *typing.get_args(annotation)):
        if option in (int, float):
            return option.__name__
    return None


def _range(leaf: fields.Leaf, kind: Literal["int", "float"], text: str) -> Dimension:
    log = text.startswith("log:")
    parts = text.removeprefix("log:").split(":")
    number = int if kind == "int" else float
    if not 2 <= len(parts) <= (2 if log else 3):
        raise ValueError("a range is LOW:HIGH, LOW:HIGH:STEP or log:LOW:HIGH")
    try:
        low, high, *step = map(number, parts)
    except ValueError:
        raise ValueError(f"a range of {leaf.name} needs numbers of type {kind}") from None
    if not -math.inf < low < high < math.inf:
        raise ValueError(f"{low} is not below {high}")
    if log and low <= 0:
        raise ValueError("a logarithmic range needs numbers above 0")
    if step and not 0 < step[0] <= high - low:
        raise ValueError(f"a step of {step[0]} is not within the range")
    return Dimension(leaf, kind, low, high, step[0] if step else None, log)


def _choices(leaf: fields.Leaf, text: str) -> Dimension:
    if fields.element(leaf.annotation):
        raise ValueError("a repeated field cannot be searched")
    choices = tuple(text.split("|" if "|" in text else ","))
    for choice in choices:
        fields.parse(leaf.annotation, choice)
    if len(set(choices)) < 2:
        raise ValueError("give two or more choices, FIELD=A,B, or a numeric range, FIELD=LOW:HIGH")
    return Dimension(leaf, "choice", choices=choices)
