"""Renders conversations with a chat template and marks the tokens that the assistant wrote.

    template = chat.load_template("", tokenizer)  # the tokenizer's own; or a name or a file
    tokens, trained = template.encode([{"role": "user", "content": "Hi"},
                                       {"role": "assistant", "content": "Hello"}])
    prompt, _ = template.encode([{"role": "user", "content": "Hi"}], add_generation_prompt=True)

The text is split wherever the assistant starts or stops writing, so no token crosses that boundary
and a prompt has the same tokens as in training.
"""

import functools
import json
import logging
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np

from llmjax.data import jinja_sandbox
from llmjax.data.jinja_sandbox import BREAK
from llmjax.data.tokenizer import Tokenizer

# Has "role" (system, user, assistant, tool, …), "content", and other keys that the template reads.
Message = Mapping[str, Any]

TEMPLATES: Mapping[str, str] = {
    path.stem: path.read_text("utf-8")
    for path in sorted((Path(__file__).parent / "templates").glob("*.jinja"))
}

ASSISTANT = "assistant"

_log = logging.getLogger(__name__)

# Markers that templates put around turns, whether or not the tokenizer treats them as special.
_TURN_MARK = re.compile(r"<\|[^<>|\s]+\|>")
_EXAMPLE_CHARACTERS = 300

# A conversation to probe templates with.
_WORDS = "words"
_PROBE = (
    {"role": "user", "content": "a"},
    {"role": ASSISTANT, "content": _WORDS},
    {"role": "user", "content": "b"},
)

_Span = tuple[int, int]


class ChatTemplate:
    """A chat template bound to a tokenizer.

    What the assistant writes is trained: the text of its turns and what ends them. The template
    marks it with `{% generation %}…{% endgeneration %}`. Most templates that come with checkpoints
    have no such marks. For these, the span is derived if the text before a turn with its generation
    prompt, and the text up to the end of the turn, are both prefixes of the whole text. Otherwise
    `encode` raises an error instead of guessing.

    In messages, the name of a special token is plain text, so no message can end another's turn.

    Args:
        source: the Jinja template.
        tokenizer: encodes the text and provides the names of special tokens.
        **variables: further variables for the template, such as `tools`.

    Raises:
        ValueError: the template is malformed.
    """

    def __init__(self, source: str, tokenizer: Tokenizer, **variables: Any) -> None:
        self.source, self.tokenizer = source, tokenizer
        self._template = jinja_sandbox.Template(source)
        names = {*tokenizer.special_tokens, *_TURN_MARK.findall(source)}
        longest_first = sorted((name for name in names if len(name) > 1), key=len, reverse=True)
        self._names = re.compile("|".join(map(re.escape, longest_first)) or "(?!)")
        written = {i: name for name, i in tokenizer.special_tokens.items()}
        self._variables = {
            "tools": None,
            "documents": None,
            "document_start": "".join(written.get(i, "") for i in tokenizer.opening),
            "document_end": written.get(tokenizer.eos_id, ""),
            **tokenizer.names,
            **jinja_sandbox.plain(variables, self._names),
        }

    def render(self, messages: Sequence[Message], *, add_generation_prompt: bool = False) -> str:
        """Renders the conversation, with special tokens written out.

        Args:
            messages: the conversation.
            add_generation_prompt: whether to end with the start of the assistant's next turn.

        Raises:
            ValueError: the template rejects the messages, or they are not plain data.
        """
        return self._render(messages, add_generation_prompt)[0].replace(BREAK, "")

    def encode(
        self,
        messages: Sequence[Message],
        *,
        add_generation_prompt: bool = False,
        turns: Literal["all", "last"] = "all",
    ) -> tuple[np.ndarray, np.ndarray]:
        """Encodes the conversation and marks the trained tokens.

        Args:
            messages: the conversation.
            add_generation_prompt: whether to end with the start of the assistant's next turn, which
                makes a prompt, in which nothing is trained.
            turns: whether to train all turns of the assistant or only the last.

        Returns:
            tokens: int32 [S].
            trained: bool [S], true for what the assistant wrote, including the end of its turn.

        Raises:
            ValueError: nothing is trained although this is no prompt, the assistant's text cannot
                be located, the template rejects the messages, or they are not plain data.
        """
        text, spans = self._spans(messages, add_generation_prompt)
        if add_generation_prompt:
            kept = []
        else:
            kept = spans if turns == "all" else spans[-1:]
            self._require_trained(kept, messages)
        pieces = list(self._cut(text, [span for span in spans if span is not None]))
        encoded = self.tokenizer.encode_parts([piece for piece, _ in pieces])
        tokens = np.array([token for ids in encoded for token in ids], np.int32)
        trained = np.repeat([span in kept for _, span in pieces], list(map(len, encoded)))
        if kept and not trained.any():
            raise ValueError(f"nothing is left to train on: {_shown(messages)}.")
        return tokens, trained.astype(bool)

    @property
    def standalone(self) -> str:
        """The template with its llmjax-specific variables defined, for other programs."""
        names = [n for n in ("document_start", "document_end") if n in self.source]
        known = (f"{{%- set {n} = {json.dumps(self._variables[n])} %}}" for n in names)
        return "".join(known) + self.source

    @functools.cached_property
    def turn_end(self) -> str:
        """What the assistant writes after its words to end a turn; "" if unknown."""
        try:
            text, spans = self._spans(_PROBE[:2], False)
        except ValueError:  # the template does not accept this conversation
            return ""
        own = [text[slice(*span)] for span in spans if span is not None]
        if not own or _WORDS not in own[-1]:
            return ""
        if own[-1].endswith(_WORDS):
            _log.warning(
                "the chat template's generation marks exclude the end of a turn, so a model "
                "trained with it never learns to end one: move it inside the marks"
            )
        return own[-1].rpartition(_WORDS)[2]

    @functools.cached_property
    def stop_ids(self) -> tuple[int, ...]:
        """The tokens that end the assistant's turn or any text."""
        return tuple(dict.fromkeys((*self._end_ids[:1], *self.tokenizer.stop_ids)))

    @property
    def stops(self) -> tuple[int | tuple[int, ...], ...]:
        """All stops of the assistant's turn: ids, and id sequences where a text ends it.

        Such a text always has the same tokens in training, because `encode` splits before it.
        """
        rows = self.tokenizer.encode_parts(list(self.stop_strings))
        return (*self.stop_ids, *map(tuple, rows))

    @property
    def stop_strings(self) -> tuple[str, ...]:
        """The text that ends the assistant's turn if no token of `stop_ids` does."""
        return (self.turn_end,) if self.turn_end and not self._end_ids else ()

    @functools.cached_property
    def _end_ids(self) -> list[int]:
        """The tokens of `turn_end` if the first identifies it: it is special or the only one."""
        (ids,) = self.tokenizer.encode_parts([self.turn_end])
        alone = len(ids) == 1 or (ids and ids[0] in self.tokenizer.special_ids)
        return ids if alone else []

    def _render(
        self, messages: Sequence[Message], add_generation_prompt: bool
    ) -> tuple[str, list[_Span]]:
        """The text, with special tokens' names in messages split by `BREAK`, and its marks."""
        for index, message in enumerate(messages):
            if not isinstance(message, Mapping) or not isinstance(message.get("role"), str):
                raise ValueError(
                    f"message {index} has no role: give mappings with 'role' and 'content'. "
                    f"The conversation is {_shown(messages)}."
                )
        known = [{k: v for k, v in message.items() if v is not None} for message in messages]
        variables = {
            **self._variables,
            "messages": jinja_sandbox.plain(known, self._names),
            "add_generation_prompt": add_generation_prompt,
        }
        try:
            return self._template.render(variables)
        except ValueError as error:
            raise ValueError(f"{error} The conversation is {_shown(messages)}.") from error

    def _spans(
        self, messages: Sequence[Message], add_generation_prompt: bool
    ) -> tuple[str, list[_Span | None]]:
        """The text and the span of each assistant turn in it; None if the span is unknown."""
        text, marked = self._render(messages, add_generation_prompt)
        if self._template.marks:
            return text, [(begin, end) for begin, end in marked if end > begin]
        turns = [i for i, message in enumerate(messages) if message["role"] == ASSISTANT]
        if not self._ends_turns:
            return text, [None for _ in turns]
        return text, [self._turn(text, messages, i, add_generation_prompt) for i in turns]

    @functools.cached_property
    def _ends_turns(self) -> bool:
        """Whether the text after the assistant's words stays the same when another turn follows.

        Otherwise it may contain more than the end of the turn, such as a prompt for the next one.
        """
        try:
            behind, and_more = (
                self._render(messages, False)[0].rpartition(_WORDS)[2]
                for messages in (_PROBE[:2], _PROBE)
            )
        except ValueError:  # the template does not accept these conversations
            return False
        return and_more.startswith(behind)

    def _turn(
        self, text: str, messages: Sequence[Message], index: int, add_generation_prompt: bool
    ) -> _Span | None:
        """The span of an assistant turn in the text; None if it is uncertain."""
        whole = index == len(messages) - 1 and not add_generation_prompt
        try:
            before = self._render(messages[:index], True)[0]
            through = text if whole else self._render(messages[: index + 1], False)[0]
        except ValueError:  # the template does not accept such a prefix
            return None
        if not (text.startswith(through) and through.startswith(before)):
            return None
        own = through[len(before) :]
        marks = list(self._names.finditer(own))
        if not marks:
            return len(before), len(through)
        # White space after the token that ends the turn is never written by the model.
        end = marks[-1].end()
        return None if own[end:].strip() else (len(before), len(before) + end)

    def _cut(self, text: str, spans: Sequence[_Span]) -> Iterator[tuple[str, _Span | None]]:
        """Splits a text into parts that no token may cross, each with its span.

        Boundaries are the ends of spans, the start of a turn's end (so that it always has the same
        tokens), and a point inside each special token's name that is plain text.
        """
        at = 0
        for span in spans:
            begin, end = span
            yield from _unbroken(text[at:begin], None)
            own, last = text[begin:end], self.turn_end
            if last and own.endswith(last):
                yield from _unbroken(own.removesuffix(last), span)
                yield last, span
            else:
                yield from _unbroken(own, span)
            at = end
        yield from _unbroken(text[at:], None)

    def _require_trained(self, spans: Sequence[_Span | None], messages: Sequence[Message]) -> None:
        if not spans:
            if not any(message.get("role") == ASSISTANT for message in messages):
                what = "the conversation has no assistant turn, so there is nothing to train on"
            else:
                what = "the chat template's generation marks contain nothing of the conversation"
            raise ValueError(f"{what}: {_shown(messages)}.")
        if None in spans:
            raise ValueError(
                "the assistant's text cannot be located: the chat template has no generation "
                "marks, and a conversation's beginning renders differently by itself. "
                "Put {% generation %}…{% endgeneration %} around the assistant's words, use "
                "a template that has them, or train on the last turn only (turns='last'). "
                f"The conversation is {_shown(messages)}."
            )


def load_template(name_or_path: str | Path, tokenizer: Tokenizer, **variables: Any) -> ChatTemplate:
    """Loads a chat template by name or from a file.

    `chatml` is used by Qwen and many others and needs the tokens `<|im_start|>` and `<|im_end|>`.
    `plain` uses plain-text headings and ends turns with eos, for any tokenizer. `speakers` writes
    lines of two speakers like `data.chat_prompt`: the user is A, the assistant B.

    Args:
        name_or_path: a key of `TEMPLATES`, a Jinja file, or "" for the tokenizer's own.
        tokenizer: as for `ChatTemplate`.
        **variables: as for `ChatTemplate`.

    Raises:
        ValueError: the template does not exist or does not fit the tokenizer.
    """
    names = ", ".join(TEMPLATES)
    if name_or_path == "":
        if not tokenizer.chat_template:
            raise ValueError(
                f"the tokenizer has no chat template: choose {names}, or name a Jinja file."
            )
        return ChatTemplate(tokenizer.chat_template, tokenizer, **variables)
    if (source := TEMPLATES.get(str(name_or_path))) is None:
        if not Path(name_or_path).is_file():
            raise ValueError(
                f"the chat template {str(name_or_path)!r} is neither a file nor one of {names}; "
                "'' is the tokenizer's own."
            )
        source = Path(name_or_path).read_text("utf-8")
    template = ChatTemplate(source, tokenizer, **variables)
    if name_or_path == "chatml" and not template.stop_strings == ():
        raise ValueError(
            "the chat template 'chatml' needs <|im_start|> and <|im_end|> as tokens, which the "
            "tokenizer lacks: train it with them (TokenizerConfig.symbols), or choose 'plain'."
        )
    return template


def _unbroken(text: str, span: _Span | None) -> Iterator[tuple[str, _Span | None]]:
    for piece in text.split(BREAK):
        if piece:
            yield piece, span


def _shown(messages: Sequence[Message]) -> str:
    """A conversation, shortened for an error message."""
    text = json.dumps(messages, ensure_ascii=False, default=repr)
    return text if len(text) <= _EXAMPLE_CHARACTERS else text[:_EXAMPLE_CHARACTERS] + "…"
