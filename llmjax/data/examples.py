"""Parses records into examples: prompt, answer, text and label.

Records have the forms of public datasets: Alpaca's instruction, input and output; OpenAI's messages
and ShareGPT's conversations; TRL's prompt with completion, or with chosen and rejected; a prompt
with ranked responses; a text with its label.
"""

import dataclasses
import json
from collections.abc import Mapping, Sequence
from typing import Any

from llmjax.data import config
from llmjax.data.chat import ASSISTANT, Message

Messages = tuple[Message, ...]

# Numbers are kept as float32.
_LARGE = 1e38
# Default fields of each part, in order of preference; `ExampleSource.fields` overrides them.
_PLACES: Mapping[str, tuple[str, ...]] = {
    "text": ("text", "sentence", "sentence1", "premise"),
    "text_pair": ("text_pair", "sentence2", "hypothesis"),
    "system": ("system",),
    "instruction": ("instruction", "prompt", "question"),
    "input": ("input",),
    "output": ("output", "completion", "response", "answer"),
    "messages": ("messages", "conversations", "conversation"),
    "prompt": ("prompt", "messages", "conversations", "instruction", "question"),
    "chosen": ("chosen",),
    "rejected": ("rejected",),
    "responses": ("responses",),
    "scores": ("scores",),
    "margin": ("margin",),
    "completion": ("completion", "response", "output"),
    "label": ("label",),
}
_SHAREGPT_ROLES = {"human": "user", "gpt": ASSISTANT, "chatgpt": ASSISTANT, "bot": ASSISTANT}


class UnfitError(ValueError):
    """A record that holds no example. Messages vary little, so that they can be counted."""


@dataclasses.dataclass(frozen=True)
class Example:
    """The content of a record.

    Attributes:
        texts: a text to learn, or a text or pair to classify; empty if there are messages.
        prompt: the messages before an answer.
        answers: one or more, from best to worst, each a tuple of messages; the assistant's are
            trained.
        label: label of the text or of the only answer: a name, a number, or true or false.
        margin: by how much the better of two answers is better.
        extra: the record's other fields.
    """

    texts: tuple[str, ...] = ()
    prompt: Messages = ()
    answers: tuple[Messages, ...] = ()
    label: str | int | None = None
    margin: float = 0.0
    extra: Mapping[str, Any] = dataclasses.field(default_factory=dict)

    @property
    def key(self) -> str:
        """What a split goes by: the text, or the prompt without the system message."""
        asked = [message for message in self.prompt if message["role"] != "system"]
        content = self.texts or asked or self.answers
        return json.dumps(content, ensure_ascii=False, sort_keys=True, default=str)


def parse(fields: Mapping[str, Any], kind: config.Kind, source: config.ExampleSource) -> Example:
    """Parses a record into an example.

    Args:
        fields: the record's fields.
        kind: kind of the example.
        source: maps the record's parts.

    Raises:
        UnfitError: the record holds no such example.
    """
    return _PARSERS[kind](_Parts(fields, source))


# The path to a string in a record: field names and list indices.
Place = tuple[str | int, ...]


def asked_places(
    fields: Mapping[str, Any], kind: config.Kind, source: config.ExampleSource
) -> list[Place]:
    """Paths of the texts in a record that a model reads but does not write.

    These are texts to learn or to classify; in records with answers, what the user asks. The record
    must be one that `parse` accepts.
    """
    parts = _Parts(fields, source)
    if kind == "classification":
        return [(str(parts.field(p)),) for p in ("text", "text_pair") if parts.has(p)]
    form, part = parts.form, "prompt"
    if kind == "sft":
        has = parts.has("instruction", "output")
        part = "instruction" if form == "instruction" or (form == "auto" and has) else "text"
        if form == "conversation" or (form == "auto" and parts.has("messages")):
            part = "messages"
    field = parts.field(part)
    value = fields.get(field) if field is not None else None
    if isinstance(value, str):
        return [(str(field),)]
    return [
        (str(field), i, "content" if "role" in message else "value")
        for i, message in enumerate(value or ())
        if _message(message)["role"] == "user"
        if isinstance(message.get("content", message.get("value")), str)
    ]


def without_repeats(
    fields: Mapping[str, Any], kind: config.Kind, source: config.ExampleSource
) -> dict[str, Any]:
    """The record with answers that do not repeat the prompt, so that it can be rewritten."""
    parts, found = _Parts(fields, source), dict(fields)
    answers = {"comparison": ("chosen", "rejected"), "judged": ("completion",)}.get(kind, ())
    if not answers or not parts.has("prompt"):
        return found
    prompt = _with_system(parts, _messages(parts, "prompt"))

    def own(answer: Any) -> Any:
        return answer if isinstance(answer, str) else list(_after(prompt, answer))

    if kind == "comparison" and parts.has("responses"):
        return found | {str(parts.field("responses")): list(map(own, parts.get("responses")))}
    return found | {str(parts.field(part)): own(parts.get(part)) for part in answers}


def others(fields: Mapping[str, Any], source: config.ExampleSource) -> dict[str, Any]:
    """The fields of a record that no kind of example reads."""
    parts = _Parts(fields, source)
    used = {parts.field(part) for part in _PLACES}
    return {name: value for name, value in fields.items() if name not in used}


class _Parts:
    """The parts of a record by name, in whatever fields they are."""

    def __init__(self, fields: Mapping[str, Any], source: config.ExampleSource) -> None:
        self.fields, self.form = fields, source.form
        self._given = dict(entry.split(":", 1) for entry in source.fields)

    def field(self, part: str) -> str | None:
        """The name of the field that holds a part; None if the record has none."""
        if part in self._given:
            return self._given[part] if self._given[part] in self.fields else None
        return next((name for name in _PLACES[part] if name in self.fields), None)

    def has(self, *parts: str) -> bool:
        return all(self.field(part) is not None for part in parts)

    def get(self, part: str) -> Any:
        field = self.field(part)
        if field is None:
            wanted = self._given.get(part) or " or ".join(map(repr, _PLACES[part]))
            raise UnfitError(f"no {part}: of {sorted(self.fields)} none is {wanted}")
        return self.fields[field]

    def text(self, part: str) -> str:
        value = self.get(part)
        if not isinstance(value, str):
            raise UnfitError(f"field {self.field(part)!r} is not a string")
        if not value.strip():
            raise UnfitError(f"field {self.field(part)!r} is empty")
        return value

    def misfit(self, *wanted: str) -> UnfitError:
        """The error for a record that fits no form; lists the forms that are wanted."""
        return UnfitError(
            f"no form fits the fields {sorted(self.fields)}: wanted {'; or '.join(wanted)}. Name "
            "others in the source's fields, as part:field"
        )


def _sft(parts: _Parts) -> Example:
    form = parts.form
    if form == "conversation" or (form == "auto" and parts.has("messages")):
        return _conversation(_messages(parts, "messages"))
    if form == "instruction" or (form == "auto" and parts.has("instruction", "output")):
        return _instruction(parts)
    if form == "text" or parts.has("text"):
        return Example(texts=(parts.text("text"),))
    raise parts.misfit("messages", "instruction and output", "text")


def _instruction(parts: _Parts) -> Example:
    if isinstance(parts.get("instruction"), str):
        asked = parts.text("instruction")
        context = parts.get("input") if parts.has("input") else ""
        if not isinstance(context, str):
            raise UnfitError(f"field {parts.field('input')!r} is not a string")
        content = f"{asked}\n\n{context}" if context.strip() else asked
        prompt: Messages = ({"role": "user", "content": content},)
    else:
        prompt = _messages(parts, "instruction")
    return Example(prompt=_with_system(parts, prompt), answers=(_answer(parts.get("output")),))


def _with_system(parts: _Parts, prompt: Messages) -> Messages:
    system = parts.get("system") if parts.has("system") else None
    if not isinstance(system, str) or not system.strip() or prompt[0]["role"] == "system":
        return prompt
    return ({"role": "system", "content": system}, *prompt)


def _conversation(messages: Messages) -> Example:
    """A conversation, split before its first answer."""
    roles = [message["role"] for message in messages]
    if ASSISTANT not in roles:
        raise UnfitError("no assistant message, so there is nothing to train on")
    first = roles.index(ASSISTANT)
    return Example(prompt=messages[:first], answers=(messages[first:],))


def _classification(parts: _Parts) -> Example:
    texts = [parts.text("text")]
    if parts.has("text_pair"):
        texts.append(parts.text("text_pair"))
    return Example(texts=tuple(texts), label=_label(parts.get("label")))


def is_label(label: str | int, names: Sequence[str]) -> bool:
    """Whether a label is one of the names, or the index of one."""
    return label in names or (isinstance(label, int) and label < len(names))


def _label(label: Any) -> str | int:
    if isinstance(label, float) and label.is_integer():
        label = int(label)
    if (
        not isinstance(label, str | int)
        or label == ""
        or (not isinstance(label, str) and label < 0)
    ):
        raise UnfitError("the label is neither a name nor a number of at least 0")
    return label if isinstance(label, str) else int(label)


def _comparison(parts: _Parts) -> Example:
    if parts.has("responses"):
        responses = parts.get("responses")
        if not isinstance(responses, Sequence) or isinstance(responses, str):
            raise UnfitError(f"field {parts.field('responses')!r} is not a list")
        if parts.has("scores"):
            responses, margin = _ranked(responses, parts.get("scores"))
        else:
            margin = 0.0
    elif parts.has("chosen", "rejected"):
        responses, margin = [parts.get("chosen"), parts.get("rejected")], 0.0
    else:
        raise parts.misfit("chosen and rejected", "responses")
    if parts.has("margin"):
        margin = _number(parts.get("margin"), "margin")
        if len(responses) > 2:
            raise UnfitError("a margin needs exactly two responses")
    if len(responses) < 2:
        raise UnfitError("fewer than two responses, so there is nothing to compare")
    whole = all(isinstance(response, Sequence) for response in responses)
    if not parts.has("prompt") and whole and not any(isinstance(r, str) for r in responses):
        prompt, answers = _shared([_as_messages(response) for response in responses])
    else:
        prompt = _with_system(parts, _messages(parts, "prompt"))
        answers = tuple(_after(prompt, response) for response in responses)
    for i, answer in enumerate(answers):
        if answer in answers[:i]:
            raise UnfitError("two responses are the same")
    return Example(prompt=prompt, answers=answers, margin=margin)


def _ranked(responses: Sequence[Any], scores: Any) -> tuple[list[Any], float]:
    """Responses from best to worst, one per score; and the margin if there are two."""
    if not isinstance(scores, Sequence) or len(scores) != len(responses):
        raise UnfitError("the numbers of scores and responses differ")
    by_score: dict[float, Any] = {}
    for response, score in zip(responses, scores, strict=True):
        by_score.setdefault(_number(score, "score"), response)
    order = sorted(by_score, reverse=True)
    if len(order) < 2:
        raise UnfitError("all responses have the same score, so there is nothing to compare")
    return [by_score[score] for score in order], order[0] - order[1] if len(order) == 2 else 0.0


def _number(value: Any, what: str) -> float:
    fits = isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < _LARGE
    if not fits:  # or is not a number at all, as NaN
        raise UnfitError(f"the {what} is not a number, or too large")
    return float(value)


def _shared(conversations: Sequence[Messages]) -> tuple[Messages, tuple[Messages, ...]]:
    """Splits conversations into their common first messages and the rest of each."""
    end = 0
    shortest = min(map(len, conversations))
    while end < shortest and all(c[end] == conversations[0][end] for c in conversations):
        end += 1
    if not end or end == shortest:
        raise UnfitError("no prompt, and the responses do not share their first messages")
    prompt = conversations[0][:end]
    return prompt, tuple(_after(prompt, conversation) for conversation in conversations)


def _after(prompt: Messages, response: Any) -> Messages:
    """A response's own messages, without the prompt if it repeats it."""
    messages = _answer(response)
    return messages[len(prompt) :] if messages[: len(prompt)] == prompt else messages


def _answer(value: Any) -> Messages:
    """An answer's messages, at least one of which is the assistant's."""
    if isinstance(value, str):
        if not value.strip():
            raise UnfitError("an answer is empty")
        return ({"role": ASSISTANT, "content": value},)
    messages = _as_messages(value)
    if not any(message["role"] == ASSISTANT for message in messages):
        raise UnfitError("no assistant message, so there is nothing to train on")
    return messages


def _prompt(parts: _Parts) -> Example:
    """A prompt without a following answer; every other field is kept."""
    prompt = _with_system(parts, _messages(parts, "prompt"))
    while prompt and prompt[-1]["role"] == ASSISTANT:
        prompt = prompt[:-1]
    if not prompt:
        raise UnfitError("a prompt has no message to answer")
    used = {parts.field("prompt"), parts.field("system")}
    extra = {name: value for name, value in parts.fields.items() if name not in used}
    return Example(prompt=prompt, extra=extra)


def _judged(parts: _Parts) -> Example:
    label = parts.get("label")
    if label not in (0, 1):
        raise UnfitError("the label is neither true nor false")
    prompt = _with_system(parts, _messages(parts, "prompt"))
    return Example(
        prompt=prompt, answers=(_after(prompt, parts.get("completion")),), label=int(label)
    )


def _messages(parts: _Parts, part: str) -> Messages:
    """A part's messages; a string is a message of the user."""
    value = parts.get(part)
    if isinstance(value, str):
        return ({"role": "user", "content": parts.text(part)},)
    return _as_messages(value)


def _as_messages(value: Any) -> Messages:
    """Messages in OpenAI's form, from that or ShareGPT's."""
    if not isinstance(value, Sequence) or isinstance(value, str) or not value:
        raise UnfitError("the messages are not a list")
    return tuple(_message(message) for message in value)


def _message(message: Any) -> Message:
    if not isinstance(message, Mapping):
        raise UnfitError("a message is not an object")
    # Parquet gives every message the keys of all messages.
    found = {name: value for name, value in message.items() if value is not None}
    if "from" in found and "role" not in found:
        sender, content = found.pop("from"), found.pop("value", None)
        role = _SHAREGPT_ROLES.get(sender, sender) if isinstance(sender, str) else None
        found = {"role": role, "content": content, **found}
    if not isinstance(found.get("role"), str):
        raise UnfitError("a message has no role")
    content = found.get("content", "")
    if isinstance(content, list) and all(_is_text(piece) for piece in content):
        content = "".join(piece["text"] for piece in content)
    if not isinstance(content, str):
        raise UnfitError("a message's content is not text")
    if found["role"] == ASSISTANT and not content.strip() and "tool_calls" not in found:
        raise UnfitError("an answer is empty")
    return {**found, "content": content}


def _is_text(piece: Any) -> bool:
    return isinstance(piece, Mapping) and isinstance(piece.get("text"), str)


_PARSERS = {
    "sft": _sft,
    "classification": _classification,
    "comparison": _comparison,
    "prompt": _prompt,
    "judged": _judged,
}
