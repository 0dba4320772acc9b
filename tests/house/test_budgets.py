"""Sizes that keep code readable: functions on a screen, files on a few, configs under control."""

import ast
import pathlib
import re

import pytest

ROOT = pathlib.Path(__file__).parents[2]
CODE = sorted(
    path
    for folder in ("llmjax", "experiments", "tools", "tests")
    for path in (ROOT / folder).rglob("*.py")
)

FUNCTION_LINES = 60
FILE_LINES = 400
CONFIG_FIELDS = 30


def nodes(path: pathlib.Path) -> list[ast.AST]:
    return list(ast.walk(ast.parse(path.read_text())))


@pytest.mark.parametrize("path", CODE, ids=lambda path: str(path.relative_to(ROOT)))
def test_sizes(path: pathlib.Path) -> None:
    assert len(path.read_text().splitlines()) <= FILE_LINES
    for node in nodes(path):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            lines = (node.end_lineno or 0) - node.lineno + 1
            assert lines <= FUNCTION_LINES, f"{node.name} has {lines} lines"
        if isinstance(node, ast.ClassDef):
            fields = [part for part in node.body if isinstance(part, ast.AnnAssign)]
            assert len(fields) <= CONFIG_FIELDS, f"{node.name} has {len(fields)} fields"


@pytest.mark.parametrize("path", CODE, ids=lambda path: str(path.relative_to(ROOT)))
def test_nothing_is_put_off(path: pathlib.Path) -> None:
    assert path.stem not in {"utils", "util", "common", "helpers", "misc"}
    if path != pathlib.Path(__file__):
        marks = re.findall(r"\b(?:TODO|FIXME|XXX|HACK)\b.*", path.read_text())
        assert not marks
