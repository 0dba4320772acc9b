"""Configs as trees: every leaf has a text, every config a JSON, and overrides reach any depth."""

import dataclasses
import json
from typing import Any, Literal

import pytest

from experiments import fields


@dataclasses.dataclass(frozen=True)
class Source:
    """A corpus.

    Attributes:
        name: what it is called.
        path: where it lies.
        weight: its share.
    """

    name: str
    path: str
    weight: float = 1.0


@dataclasses.dataclass(frozen=True)
class Inner:
    """Part of a config.

    Attributes:
      rate: a number
        on two lines: with a colon.
      heads: must divide `width`.
      width: a multiple of `heads`.
    """

    rate: float = 0.5
    heads: int = 2
    width: int = 4

    def __post_init__(self) -> None:
        if self.width % self.heads:
            raise ValueError(f"width={self.width} is not a multiple of heads={self.heads}")


@dataclasses.dataclass(frozen=True)
class Outer:
    """A config.

    Attributes:
        inner: the part.
        kind: one of two.
        limit: a bound, or none.
        sizes: any number of them.
        betas: two of them.
        sources: the text.
        quick: whether to hurry.

    Nothing of this line belongs to the section.
    """

    inner: Inner = Inner()
    kind: Literal["a", "b"] = "a"
    limit: int | None = 3
    sizes: tuple[int, ...] = (1, 2)
    betas: tuple[float, float] = (0.9, 0.95)
    sources: tuple[Source, ...] = (Source("web", "/web", 0.7), Source("books", "/books", 0.3))
    quick: bool = False


def test_leaves_are_named_typed_and_documented() -> None:
    found = {
        leaf.name: (fields.describe(leaf.annotation), leaf.doc) for leaf in fields.leaves(Outer)
    }
    assert found == {
        "inner.rate": ("float", "a number on two lines: with a colon."),
        "inner.heads": ("int", "must divide `width`."),
        "inner.width": ("int", "a multiple of `heads`."),
        "kind": ("a|b", "one of two."),
        "limit": ("int or none", "a bound, or none."),
        "sizes": ("int,...", "any number of them."),
        "betas": ("float,float", "two of them."),
        "sources": ("name=...,path=...,weight=...", "the text."),
        "quick": ("bool", "whether to hurry."),
    }


def test_a_type_that_no_text_stands_for_is_refused_by_name() -> None:
    @dataclasses.dataclass(frozen=True)
    class Wrong:
        table: dict

    with pytest.raises(TypeError, match=r"Wrong\.table"):
        list(fields.leaves(Wrong))


@pytest.mark.parametrize(
    ("annotation", "text", "value"),
    [
        (int, "-1", -1),
        (int, "10_000", 10000),
        (float, "3e-4", 3e-4),
        (float, "inf", float("inf")),
        (str, "a=b, c", "a=b, c"),
        (bool, "False", False),
        (Literal["a", "b"], "b", "b"),
        (Literal[1, 2], "2", 2),
        (int | None, "none", None),
        (int | None, "7", 7),
        (tuple[int, ...], "1, 2,3", (1, 2, 3)),
        (tuple[int, ...], "", ()),
        (tuple[float, float], "0.9,0.99", (0.9, 0.99)),
        (
            tuple[Source, ...],
            "name=web,path=/a,b/*.txt,weight=2",
            {"name": "web", "path": "/a,b/*.txt", "weight": 2.0},
        ),
    ],
)
def test_parse(annotation: Any, text: str, value: Any) -> None:
    assert fields.parse(annotation, text) == value


@pytest.mark.parametrize(
    ("annotation", "text", "message"),
    [
        (int, "1.5", "expected int"),
        (int, "", "expected int"),
        (float, "fast", "expected float"),
        (float, "nan", "expected float"),
        (bool, "maybe", "expected true or false"),
        (Literal["a", "b"], "c", "expected one of a, b"),
        (int | None, "x", "expected int"),
        (tuple[int, ...], "1,,2", "expected int"),
        (tuple[float, float], "0.9", "expected float,float"),
        (tuple[Source, ...], "/data/web", "expected name=...,path=...,weight=..."),
        (tuple[Source, ...], "path=/web", "name=... is missing"),
        (tuple[Source, ...], "name=web,weight=much", "weight=much: expected float"),
        (tuple[Source, ...], "name=web,path=/web,wait=2", "wait=... is none of name=..., path=..."),
    ],
)
def test_what_does_not_parse_says_what_would(annotation: Any, text: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        fields.parse(annotation, text)


def test_replace_reaches_any_depth_and_leaves_the_rest() -> None:
    changed = fields.replace(Outer(), {("inner", "rate"): 0.1, ("kind",): "b", ("limit",): None})
    assert changed == Outer(inner=Inner(rate=0.1), kind="b", limit=None)
    assert fields.replace(Outer(), {}) == Outer()


def test_replace_validates_the_result_and_no_state_between() -> None:
    both = {("inner", "heads"): 3, ("inner", "width"): 9}
    assert fields.replace(Outer(), both).inner == Inner(heads=3, width=9)
    with pytest.raises(ValueError, match="not a multiple"):
        fields.replace(Outer(), {("inner", "heads"): 3})


def test_replaced_records_keep_what_is_not_given() -> None:
    given = [{"name": "books", "path": "/mnt/books"}, {"name": "code", "path": "/code"}]
    sources = fields.replace(Outer(), {("sources",): given}).sources
    assert sources == (Source("books", "/mnt/books", 0.3), Source("code", "/code", 1.0))
    with pytest.raises(ValueError, match=r"name=new.*path"):
        fields.replace(Outer(), {("sources",): [{"name": "new"}]})


def test_json_round_trip() -> None:
    config = Outer(inner=Inner(rate=1.0), limit=None, betas=(0.1, 1e-30))
    assert fields.from_json(Outer, json.loads(json.dumps(fields.to_json(config)))) == config


def test_json_of_another_version() -> None:
    assert fields.from_json(Outer, {"kind": "b"}) == Outer(kind="b")
    with pytest.raises(ValueError, match="another version"):
        fields.from_json(Outer, {"inner": {"gone": 1}})
    with pytest.raises(ValueError, match="path"):
        fields.from_json(Source, {"name": "web"})
