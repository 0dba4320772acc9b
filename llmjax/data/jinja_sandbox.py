"""Compiles chat templates: sandboxed Jinja with the extensions that `transformers` provides.

Templates come from untrusted checkpoints. They see only plain data, in an environment that blocks
access to Python's internals and prevents them from modifying their inputs.
"""

import datetime
import json
import re
from collections.abc import Mapping
from typing import Any

import jinja2
import jinja2.ext
import jinja2.nodes
import jinja2.parser
import jinja2.sandbox

from llmjax.data.tokenizer import utf8

# Unpaired surrogates, which valid text never contains. They mark where the assistant's words begin
# and end, and break up names of special tokens in messages, so that they are not read as tokens.
BEGIN, END, BREAK = "\ud800", "\ud801", "\ud802"


class Template:
    """A compiled chat template.

    Args:
        source: Jinja, optionally with `{% generation %}…{% endgeneration %}` around what the
            assistant writes.

    Attributes:
        marks: whether it has such marks.

    `strftime_now` always uses the time at which the template was compiled.

    Raises:
        ValueError: the template is malformed.
    """

    def __init__(self, source: str) -> None:
        try:
            self._plain = _environment("", "").from_string(source)
            self._marked = _environment(BEGIN, END).from_string(source)
        except jinja2.TemplateSyntaxError as error:
            raise ValueError(
                f"the chat template is broken at line {error.lineno}: {error}"
            ) from error
        tree = self._plain.environment.parse(source)
        self.marks = any(
            isinstance(block.call.node, jinja2.nodes.ExtensionAttribute)
            for block in tree.find_all(jinja2.nodes.CallBlock)
        )
        # Fixed, because the text before a turn must be the same each time it is rendered.
        self._now = datetime.datetime.now()

    def render(self, variables: Mapping[str, Any]) -> tuple[str, list[tuple[int, int]]]:
        """Renders the text, and returns the spans of its marks.

        Args:
            variables: plain data for the template.

        Raises:
            ValueError: the template rejects the variables or violates the sandbox.
        """
        variables = {**variables, "strftime_now": self._now.strftime}
        try:
            text = self._plain.render(variables)
            marked = self._marked.render(variables) if self.marks else text
        except jinja2.sandbox.SecurityError as error:
            raise ValueError(f"the chat template does what the sandbox forbids: {error}") from error
        except Exception as error:  # untrusted code may raise anything
            raise ValueError(f"the chat template refuses the conversation: {error}") from error
        unmarked, spans = _read_marks(marked)
        if unmarked != text:
            raise ValueError(
                "the chat template changes the text between its generation marks after rendering "
                "it: move its filters inside the marks."
            )
        return text, spans


def plain(value: Any, names: re.Pattern[str]) -> Any:
    """A copy of plain data in which `BREAK` splits every name of a special token.

    Args:
        value: None, a number or string, or mappings, lists and tuples of these.
        names: matches the names, which have at least two characters.

    Raises:
        ValueError: the data is not plain, or a string is not valid Unicode.
    """
    if value is None or type(value) in (bool, int, float):
        return value
    if isinstance(value, str):
        utf8(value)
        return names.sub(lambda name: name[0][0] + BREAK + name[0][1:], value)
    if isinstance(value, Mapping):
        return {str(key): plain(item, names) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item, names) for item in value]
    raise ValueError(
        f"the conversation has a {type(value).__name__}, but templates take strings, numbers, "
        "mappings and lists only."
    )


def _read_marks(marked: str) -> tuple[str, list[tuple[int, int]]]:
    """The text without its marks, and their spans."""
    texts, spans, at, begin = [], [], 0, -1
    for piece in re.split(f"([{BEGIN}{END}])", marked):
        if piece == BEGIN:
            if begin >= 0:
                raise ValueError("the chat template has generation marks within others.")
            begin = at
        elif piece == END:
            spans.append((begin, at))
            begin = -1
        else:
            texts.append(piece)
            at += len(piece)
    return "".join(texts), spans


def _environment(begin: str, end: str) -> jinja2.sandbox.ImmutableSandboxedEnvironment:
    environment = jinja2.sandbox.ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[_Generation, "jinja2.ext.loopcontrols"]
    )
    environment.extend(generation_marks=(begin, end))
    environment.filters["tojson"] = _to_json
    environment.globals["raise_exception"] = _raise_exception
    environment.globals["namespace"] = _Namespace
    return environment


class _Generation(jinja2.ext.Extension):
    """The tag `{% generation %}`, which surrounds its content with the environment's marks."""

    tags = {"generation"}  # noqa: RUF012 (as Jinja declares it)

    def parse(self, parser: jinja2.parser.Parser) -> jinja2.nodes.Node:
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return jinja2.nodes.CallBlock(self.call_method("_around"), [], [], body).set_lineno(line)

    def _around(self, caller: Any) -> str:
        begin, end = self.environment.generation_marks  # type: ignore[attr-defined]
        return begin + caller() + end


class _Namespace(jinja2.utils.Namespace):
    """Jinja's namespace, without attributes that Python itself looks up."""

    def __init__(self, /, *args: Any, **kwargs: Any) -> None:
        attributes = dict(*args, **kwargs)
        for name in attributes:
            _require_public(name)
        super().__init__(attributes)

    def __setitem__(self, name: str, value: Any) -> None:
        _require_public(name)
        super().__setitem__(name, value)


def _require_public(name: str) -> None:
    if name.startswith("_"):
        raise jinja2.sandbox.SecurityError(f"an attribute {name!r} of a namespace")


def _raise_exception(message: str) -> None:
    raise jinja2.TemplateError(message)


def _to_json(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    """JSON as `transformers` writes it: not escaped for HTML, unlike Jinja's filter."""
    text = json.dumps(
        value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys
    )
    return text.replace(json.dumps(BREAK)[1:-1], BREAK)
