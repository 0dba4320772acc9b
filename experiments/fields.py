"""Configs as trees: nested frozen dataclasses, their typed leaves, and their serialization.

A config is declared once, as dataclasses whose docstrings have an `Attributes:` section. From these
are derived command-line flags (name, type and help text per leaf), overrides at any depth, and the
JSON that is saved with a run and read back into an equal config.
"""

import dataclasses
import inspect
import math
import re
import types
import typing
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Literal, TypeVar

T = TypeVar("T")
Path = tuple[str, ...]


@dataclasses.dataclass(frozen=True)
class Leaf:
    """A field that is not a nested config.

    Attributes:
        path: the names of the fields from the root to it.
        annotation: its resolved type.
        doc: its entry in the `Attributes:` section of its class, on one line.
    """

    path: Path
    annotation: Any
    doc: str

    @property
    def name(self) -> str:
        """The dotted name, as on the command line: `model.num_layers`."""
        return ".".join(self.path)


def leaves(cls: type, path: Path = ()) -> Iterator[Leaf]:
    """All leaves of a config class, in order of declaration.

    Raises:
        TypeError: a field's type cannot be written on a command line.
    """
    docs = attribute_docs(cls)
    annotations = typing.get_type_hints(cls)
    for field in dataclasses.fields(cls):
        annotation, here = annotations[field.name], (*path, field.name)
        if nested := _config_class(annotation):
            yield from leaves(nested, here)
            continue
        try:
            describe(annotation)
        except TypeError as error:
            raise TypeError(f"{cls.__name__}.{field.name}: {error}") from None
        yield Leaf(here, annotation, docs.get(field.name, ""))


def groups(cls: type, path: Path = ()) -> dict[Path, str]:
    """The nested configs of a config class: their entries in its docstring, by path."""
    docs, annotations = attribute_docs(cls), typing.get_type_hints(cls)
    found: dict[Path, str] = {}
    for field in dataclasses.fields(cls):
        if nested := _config_class(annotations[field.name]):
            here = (*path, field.name)
            found |= {here: docs.get(field.name, ""), **groups(nested, here)}
    return found


def attribute_docs(cls: type) -> dict[str, str]:
    """The entries of the `Attributes:` sections of a class and its bases, each on one line."""
    docs: dict[str, str] = {}
    for part in reversed(cls.__mro__):
        _, _, section = inspect.cleandoc(part.__doc__ or "").partition("\nAttributes:\n")
        body = re.split(r"\n(?=\S)", section)[0]
        # Entries are indented by 2 or 4; their continuation lines are indented further.
        entries = re.split(r"^ {1,4}(?=\w+: )", body, flags=re.MULTILINE)[1:]
        split = (entry.partition(": ") for entry in entries)
        docs |= {name: " ".join(text.split()) for name, _, text in split}
    return docs


def _optional(annotation: Any) -> Any:
    """`X` for `X | None`, else None."""
    if typing.get_origin(annotation) not in (typing.Union, types.UnionType):
        return None
    rest = [a for a in typing.get_args(annotation) if a is not type(None)]
    if len(rest) != 1 or len(typing.get_args(annotation)) != 2:
        raise TypeError(f"{annotation} is not supported as the type of a flag")
    return rest[0]


def element(annotation: Any) -> type | None:
    """The dataclass `X` of a field declared `tuple[X, ...]`, else None."""
    arguments = typing.get_args(annotation)
    many = typing.get_origin(annotation) is tuple and arguments[1:] == (...,)
    return _config_class(arguments[0]) if many else None


def _config_class(annotation: Any) -> type | None:
    """The annotation itself if it is a dataclass, else None."""
    is_config = isinstance(annotation, type) and dataclasses.is_dataclass(annotation)
    return annotation if is_config else None


def describe(annotation: Any) -> str:
    """A readable name of a type: `int`, `cosine|linear`, `float or none`, `int,int,...`.

    Raises:
        TypeError: the type cannot be written on a command line.
    """
    origin, arguments = typing.get_origin(annotation), typing.get_args(annotation)
    if annotation in (bool, int, float, str):
        return "text" if annotation is str else annotation.__name__
    if origin is Literal:
        return "|".join(map(str, arguments))
    if record := element(annotation):
        return ",".join(f"{field.name}=..." for field in dataclasses.fields(record))
    if origin is tuple and arguments[1:] == (...,):
        return f"{describe(arguments[0])},..."
    if origin is tuple and arguments:
        return ",".join(map(describe, arguments))
    if inner := _optional(annotation):
        return f"{describe(inner)} or none"
    raise TypeError(f"{annotation} is not supported as the type of a flag")


def parse(annotation: Any, text: str) -> Any:
    """Parses `text` as a value of a type.

    For a field declared `tuple[X, ...]` of a dataclass `X`, the text is one element, such as
    `name=web,path=/data/web`, and the result is a dict of the given fields.

    Raises:
        ValueError: the text is not a value of this type.
    """
    origin, arguments = typing.get_origin(annotation), typing.get_args(annotation)
    expected = ValueError(f"expected {describe(annotation)}")
    if annotation is str:
        return text
    if annotation is bool:
        try:
            return {"true": True, "1": True, "false": False, "0": False}[text.lower()]
        except KeyError:
            raise ValueError("expected true or false") from None
    if annotation in (int, float):
        try:
            number = annotation(text)
        except ValueError:
            raise expected from None
        if math.isnan(number):
            raise expected
        return number
    if origin is Literal:
        for choice in arguments:
            if text == str(choice):
                return choice
        raise ValueError(f"expected one of {', '.join(map(str, arguments))}")
    if record := element(annotation):
        return _parse_record(record, text)
    if origin is tuple:
        parts = text.split(",") if text else []
        if arguments[1:] == (...,):
            arguments = arguments[:1] * len(parts)
        if len(parts) != len(arguments):
            raise expected
        return tuple(parse(a, part.strip()) for a, part in zip(arguments, parts, strict=True))
    return None if text.lower() == "none" else parse(_optional(annotation), text)


def _parse_record(cls: type, text: str) -> dict[str, Any]:
    annotations = typing.get_type_hints(cls)
    names = [field.name for field in dataclasses.fields(cls)]
    # A comma only ends a value if the name of a field follows, as paths may contain commas.
    parts = re.split(rf",(?=(?:{'|'.join(names)})=)", text)
    values: dict[str, Any] = {}
    for part in parts:
        name, equals, value = part.partition("=")
        if not equals or name not in names:
            raise ValueError(f"expected {','.join(f'{n}=...' for n in names)}, not {part!r}")
        if unknown := re.search(r",(\w+)=", value):
            raise ValueError(
                f"{part}: {unknown[1]}=... is none of {', '.join(f'{n}=...' for n in names)}"
            )
        try:
            values[name] = parse(annotations[name], value)
        except ValueError as error:
            raise ValueError(f"{part}: {error}") from None
    if names[0] not in values:
        raise ValueError(f"{names[0]}=... is missing")
    return values


def get(config: Any, path: Path) -> Any:
    """The value of the leaf at `path`."""
    for name in path:
        config = getattr(config, name)
    return config


def replace(config: T, changes: Mapping[Path, Any]) -> T:
    """`config` with other values at some leaves.

    Every dataclass on the way is built once with all of its changes, so that only the result is
    validated, never an intermediate state. A change to a `tuple[X, ...]` of dataclasses is a
    sequence of dicts from `parse`: the tuple gets exactly these elements. If an existing element
    has the same first field (its name), it provides the fields that are not given.

    Raises:
        ValueError: the resulting config is invalid.
    """
    here: dict[str, Any] = {}
    below: dict[str, dict[Path, Any]] = {}
    annotations = typing.get_type_hints(type(config))
    for (name, *rest), value in changes.items():
        if rest:
            below.setdefault(name, {})[tuple(rest)] = value
        elif record := element(annotations[name]):
            here[name] = _replace_records(record, getattr(config, name), value)
        else:
            here[name] = value
    for name, deeper in below.items():
        here[name] = replace(getattr(config, name), deeper)
    return dataclasses.replace(config, **here)  # type: ignore[type-var]


def _replace_records(cls: type, old: Sequence[Any], new: Sequence[dict[str, Any]]) -> tuple:
    key = dataclasses.fields(cls)[0].name
    known = {getattr(record, key): record for record in old}
    records = []
    for values in new:
        try:
            base = known.get(values[key])
            records.append(dataclasses.replace(base, **values) if base else cls(**values))
        except TypeError as error:
            raise ValueError(f"{key}={values[key]}: {error}") from None
    return tuple(records)


def to_json(config: Any) -> Any:
    """A config as JSON-serializable dicts, lists, numbers, strings and None."""
    if dataclasses.is_dataclass(config):
        return {f.name: to_json(getattr(config, f.name)) for f in dataclasses.fields(config)}
    if isinstance(config, tuple):
        return [to_json(value) for value in config]
    return config


def from_json(cls: type[T], data: Any) -> T:
    """Inverts `to_json`. Missing fields get their defaults.

    Raises:
        ValueError: `data` has an unknown field, or lacks one without a default.
    """
    return _from_json(cls, data)


def _from_json(annotation: Any, data: Any) -> Any:
    if cls := _config_class(annotation):
        annotations = typing.get_type_hints(cls)
        unknown = sorted(set(data) - {field.name for field in dataclasses.fields(cls)})
        if unknown:
            raise ValueError(
                f"{unknown} are not fields of {cls.__name__}: "
                "the file was written by another version"
            )
        values = {name: _from_json(annotations[name], value) for name, value in data.items()}
        try:
            return cls(**values)
        except TypeError as error:
            raise ValueError(str(error)) from None
    if data is not None and typing.get_origin(annotation) in (typing.Union, types.UnionType):
        annotation = _optional(annotation)
    if typing.get_origin(annotation) is tuple:
        arguments = typing.get_args(annotation)
        if arguments[1:] == (...,):
            arguments = arguments[:1] * len(data)
        return tuple(_from_json(a, value) for a, value in zip(arguments, data, strict=True))
    return float(data) if annotation is float else data
