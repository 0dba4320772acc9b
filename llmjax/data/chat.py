"""Conversations to text and tokens by a chat template, with what the assistant wrote marked.

    template = chat.load_template("", tokenizer)  # the tokenizer's own; or a name, or a file
    tokens, trained = template.encode([{"role": "user", "content": "Hi"},
                                       {"role": "assistant", "content": "Hello"}])
    prompt, _ = template.encode([{"role": "user", "content": "Hi"}], add_generation_prompt=True)

A text is cut wherever the assistant begins and ends to write, so no token is half its own, and the
tokens of a prompt are those that training has in front of the answer.
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

# "role" (system, user, assistant, tool, …), "content", and whatever else the template knows.
Message = Mapping[str, Any]

TEMPLATES: Mapping[str, str] = {
    path.stem: path.read_text("utf-8")
    for path in sorted((Path(__file__).parent / "templates").glob("*.jinja"))
}

ASSISTANT = "assistant"

_log = logging.getLogger(__name__)

# Marks that templates put around turns, whether or not the tokenizer calls them special.
_TURN_MARK = re.compile(r"<\|[^<>|\s]+\|>")
_EXAMPLE_CHARACTERS = 300

# What templates are tried with.
_WORDS = "words"
_PROBE = (
    {"role": "user", "content": "a"},
    {"role": ASSISTANT, "content": _WORDS},
    {"role": "user", "content": "b"},
)

_Span = tuple[int, int]


class ChatTemplate:
    """How a model is spoken to.

    What the assistant writes is trained: a turn's text and what ends it. The template says where
    that is with `{% generation %}…{% endgeneration %}`. For one that does not, as most that come
    with checkpoints, it follows where the text up to a turn's generation prompt, and the text up
    to the turn's end, are beginnings of the whole text; else `encode` refuses to guess.

    In messages, the name of a special token is text like any other, so nobody ends another's turn.

    Args:
        source: the template, Jinja.
        tokenizer: makes tokens of its text, and gives it the names of special tokens.
        **variables: what the template sees beside messages; `tools` say.

    Raises:
        ValueError: the template is not well formed.
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
        """The conversation's text, special tokens written out.

        Args:
            messages: the conversation.
            add_generation_prompt: whether the text goes on to where the assistant would write.

        Raises:
            ValueError: the template refuses the messages, or they are not plain data.
        """
        return self._render(messages, add_generation_prompt)[0].replace(BREAK, "")

    def encode(
        self,
        messages: Sequence[Message],
        *,
        add_generation_prompt: bool = False,
        turns: Literal["all", "last"] = "all",
    ) -> tuple[np.ndarray, np.ndarray]:
        """The conversation's tokens, and which of them are trained.

        Args:
            messages: the conversation.
            add_generation_prompt: whether it is a prompt, which ends where the assistant would
                write. In a prompt nothing is trained.
            turns: whether all turns of the assistant are trained, or only the last.

        Returns:
            tokens: int32 [S].
            trained: bool [S], the assistant's own, the end of its turn among them.

        Raises:
            ValueError: nothing is trained in what is no prompt, it cannot be known what the
                assistant wrote, the template refuses the messages, or they are not plain data.
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
        """The template for other programs, which do not know what it sees here beside messages."""
        names = [n for n in ("document_start", "document_end") if n in self.source]
        known = (f"{{%- set {n} = {json.dumps(self._variables[n])} %}}" for n in names)
        return "".join(known) + self.source

    @functools.cached_property
    def turn_end(self) -> str:
        """What the template lets the assistant write behind its words; "" if nothing is known."""
        try:
            text, spans = self._spans(_PROBE[:2], False)
        except ValueError:  # the template takes other conversations
            return ""
        own = [text[slice(*span)] for span in spans if span is not None]
        if not own or _WORDS not in own[-1]:
            return ""
        if own[-1].endswith(_WORDS):
            _log.warning(
                "the chat template's generation marks leave out what ends a turn, so a model that "
                "is trained by it never learns to end one: move it inside of the marks"
            )
        return own[-1].rpartition(_WORDS)[2]

    @functools.cached_property
    def stop_ids(self) -> tuple[int, ...]:
        """The tokens that end the assistant's turn, and those that end any text."""
        return tuple(dict.fromkeys((*self._end_ids[:1], *self.tokenizer.stop_ids)))

    @property
    def stops(self) -> tuple[int | tuple[int, ...], ...]:
        """All that ends the assistant's turn: ids, and ids in a row where a text does.

        Such a text is always the same tokens in training, as `encode` cuts in front of it.
        """
        rows = self.tokenizer.encode_parts(list(self.stop_strings))
        return (*self.stop_ids, *map(tuple, rows))

    @property
    def stop_strings(self) -> tuple[str, ...]:
        """The text that ends the assistant's turn where no token of `stop_ids` does."""
        return (self.turn_end,) if self.turn_end and not self._end_ids else ()

    @functools.cached_property
    def _end_ids(self) -> list[int]:
        """The tokens of `turn_end` if the first tells it: a special one, or the only one."""
        (ids,) = self.tokenizer.encode_parts([self.turn_end])
        alone = len(ids) == 1 or (ids and ids[0] in self.tokenizer.special_ids)
        return ids if alone else []

    def _render(
        self, messages: Sequence[Message], add_generation_prompt: bool
    ) -> tuple[str, list[_Span]]:
        """The text, special tokens' names in messages cut by `BREAK`, and its generation marks."""
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
        """The text and where the assistant wrote it, a turn a span; None where that is unknown."""
        text, marked = self._render(messages, add_generation_prompt)
        if self._template.marks:
            return text, [(begin, end) for begin, end in marked if end > begin]
        turns = [i for i, message in enumerate(messages) if message["role"] == ASSISTANT]
        if not self._ends_turns:
            return text, [None for _ in turns]
        return text, [self._turn(text, messages, i, add_generation_prompt) for i in turns]

    @functools.cached_property
    def _ends_turns(self) -> bool:
        """Whether what is behind the assistant's words still is when another turn follows.

        If not, it may be more than the end of the turn: a prompt for the next one, say.
        """
        try:
            behind, and_more = (
                self._render(messages, False)[0].rpartition(_WORDS)[2]
                for messages in (_PROBE[:2], _PROBE)
            )
        except ValueError:  # the template takes other conversations
            return False
        return and_more.startswith(behind)

    def _turn(
        self, text: str, messages: Sequence[Message], index: int, add_generation_prompt: bool
    ) -> _Span | None:
        """Where in the text a turn of the assistant is, None if that is not certain."""
        whole = index == len(messages) - 1 and not add_generation_prompt
        try:
            before = self._render(messages[:index], True)[0]
            through = text if whole else self._render(messages[: index + 1], False)[0]
        except ValueError:  # the template takes no such beginning
            return None
        if not (text.startswith(through) and through.startswith(before)):
            return None
        own = through[len(before) :]
        marks = list(self._names.finditer(own))
        if not marks:
            return len(before), len(through)
        # Behind the token that ends the turn comes white space, which the model never writes.
        end = marks[-1].end()
        return None if own[end:].strip() else (len(before), len(before) + end)

    def _cut(self, text: str, spans: Sequence[_Span]) -> Iterator[tuple[str, _Span | None]]:
        """The parts of a text that no token may leave, each with the span that it is of.

        They end where a span begins or ends, before the end of a turn, which so is always the same
        tokens, and within the names of special tokens that are only text.
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
                what = "the conversation has no turn of the assistant, so nothing to train on"
            else:
                what = "the chat template's generation marks hold nothing of the conversation"
            raise ValueError(f"{what}: {_shown(messages)}.")
        if None in spans:
            raise ValueError(
                "it is not certain what the assistant wrote: the chat template has no generation "
                "marks, and writes the conversation up to a turn otherwise than within the whole. "
                "Put {% generation %}…{% endgeneration %} around the assistant's words in it, use "
                "a template that has them, or train on the last turn only (turns='last'). "
                f"The conversation is {_shown(messages)}."
            )


def load_template(name_or_path: str | Path, tokenizer: Tokenizer, **variables: Any) -> ChatTemplate:
    """The chat template of a name or a file.

    `chatml` is Qwen's and many others', and needs `<|im_start|>` and `<|im_end|>` as tokens;
    `plain` has headings of ordinary text and ends turns with eos, for any tokenizer; `speakers`
    writes lines of two speakers, as `data.chat_prompt` does: the user is A, the assistant B.

    Args:
        name_or_path: a key of `TEMPLATES`, a file of Jinja, or "" for the tokenizer's own.
        tokenizer: as in `ChatTemplate`.
        **variables: as in `ChatTemplate`.

    Raises:
        ValueError: there is no such template, or it does not fit the tokenizer.
    """
    names = ", ".join(TEMPLATES)
    if name_or_path == "":
        if not tokenizer.chat_template:
            raise ValueError(
                f"the tokenizer has no chat template: choose {names}, or name a file of Jinja."
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
    """A conversation for a message to a person, shortened."""
    text = json.dumps(messages, ensure_ascii=False, default=repr)
    return text if len(text) <= _EXAMPLE_CHARACTERS else text[:_EXAMPLE_CHARACTERS] + "…"
