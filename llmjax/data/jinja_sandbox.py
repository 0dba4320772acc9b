"""Chat templates as text: Jinja in its sandbox, with what `transformers` gives them.

Templates come with checkpoints of strangers. They see plain data only, in an environment that
keeps them from Python's internals and from changing what they are given.
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

# Halves of surrogate pairs, which no valid text has: where the assistant's words begin and end,
# and what keeps the name of a special token in a message from being read as that token.
BEGIN, END, BREAK = "\ud800", "\ud801", "\ud802"


class Template:
    """A chat template, compiled.

    Args:
        source: Jinja, in which `{% generation %}…{% endgeneration %}` may stand around what the
            assistant writes.

    Attributes:
        marks: whether it has such marks.

    The time that `strftime_now` tells is when the template was made.

    Raises:
        ValueError: it is not well formed.
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
        # The same for all conversations: what one has in front of a turn must equal another's.
        self._now = datetime.datetime.now()

    def render(self, variables: Mapping[str, Any]) -> tuple[str, list[tuple[int, int]]]:
        """The text, and from where to where in it the marks are.

        Args:
            variables: what the template sees, plain data.

        Raises:
            ValueError: it refuses the variables, or does what the sandbox forbids.
        """
        variables = {**variables, "strftime_now": self._now.strftime}
        try:
            text = self._plain.render(variables)
            marked = self._marked.render(variables) if self.marks else text
        except jinja2.sandbox.SecurityError as error:
            raise ValueError(f"the chat template does what the sandbox forbids: {error}") from error
        except Exception as error:  # whatever a stranger's program may raise
            raise ValueError(f"the chat template refuses the conversation: {error}") from error
        unmarked, spans = _read_marks(marked)
        if unmarked != text:
            raise ValueError(
                "the chat template changes what stands between its generation marks once it is "
                "written: move its filters inside of the marks."
            )
        return text, spans


def plain(value: Any, names: re.Pattern[str]) -> Any:
    """A copy of plain data in which every name of a special token is cut in two by `BREAK`.

    Args:
        value: None, numbers, strings, mappings, lists and tuples of such.
        names: matches the names, each of two characters at least.

    Raises:
        ValueError: it is other than plain, or has a string that is not valid Unicode.
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
        f"the conversation has a {type(value).__name__}, and templates take strings, numbers, "
        "mappings and lists only."
    )


def _read_marks(marked: str) -> tuple[str, list[tuple[int, int]]]:
    """The text without its marks, and their spans of it."""
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
    """The tag `{% generation %}`, which puts the environment's marks around what it holds."""

    tags = {"generation"}  # noqa: RUF012 (as Jinja declares it)

    def parse(self, parser: jinja2.parser.Parser) -> jinja2.nodes.Node:
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return jinja2.nodes.CallBlock(self.call_method("_around"), [], [], body).set_lineno(line)

    def _around(self, caller: Any) -> str:
        begin, end = self.environment.generation_marks  # type: ignore[attr-defined]
        return begin + caller() + end


class _Namespace(jinja2.utils.Namespace):
    """Jinja's, without attributes that Python itself would look up."""

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
    """JSON as `transformers` writes it: not escaped for HTML, as Jinja's own is."""
    text = json.dumps(
        value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys
    )
    return text.replace(json.dumps(BREAK)[1:-1], BREAK)
