"""Writes examples as records in the forms of public datasets: the inverse of `examples.parse`."""

from collections.abc import Callable, Mapping
from typing import Any

from llmjax.data.chat import ASSISTANT, Message
from llmjax.data.examples import Example, Messages, UnfitError

Record = dict[str, Any]


def to_record(example: Example, form: str, question: str = "") -> Record:
    """A record that `examples.parse` reads as the same example.

    Args:
        example: an example of any kind.
        form: a name of `FORMS`.
        question: what to ask about a text to classify, in forms with answers: the text follows it,
            and the label is the answer.

    Raises:
        UnfitError: the form cannot hold a part of the example.
    """
    if form not in FORMS:
        raise ValueError(f"form is {form!r}: use one of {', '.join(FORMS)}.")
    asked = form in ("instruction", "messages", "sharegpt", "conversation", "completion")
    if asked and example.texts and example.label is not None:
        example = _as_question(example, question)
    return FORMS[form](example)


def _as_question(example: Example, question: str) -> Example:
    """A labelled text as a question and its answer."""
    if not question.strip():
        raise UnfitError("a text with a label needs a question: give one")
    content = "\n\n".join([question, *example.texts])
    return Example(
        prompt=({"role": "user", "content": content},),
        answers=(({"role": ASSISTANT, "content": str(example.label)},),),
    )


def _instruction(example: Example) -> Record:
    system, rest = _system(example.prompt)
    asked = _content(rest, "user", "an instruction must be one user message")
    answer = _content(_answer(example), ASSISTANT, "an instruction needs one answer in one message")
    # Empty, as in Alpaca: the instruction already includes the input.
    if system and not system["system"].strip():
        raise UnfitError("the system message is empty")
    return {**system, "instruction": asked, "input": "", "output": answer}


def _completion(example: Example) -> Record:
    return {"prompt": _prompt(example), "completion": list(_answer(example))}


def _messages(example: Example, field: str = "messages") -> Record:
    if any(message["role"] == ASSISTANT for message in example.prompt):
        raise UnfitError("the prompt has an answer, which a conversation would train")
    messages = [*example.prompt, *_answer(example)]
    return {field: [dict(message) for message in messages]}


def _sharegpt(example: Example) -> Record:
    names = {"user": "human", ASSISTANT: "gpt"}
    turns = []
    for message in _messages(example)["messages"]:
        if set(message) != {"role", "content"}:
            more = sorted(set(message) - {"role", "content"})
            raise UnfitError(f"a ShareGPT turn cannot have {more[0]!r}")
        turns.append(
            {"from": names.get(message["role"], message["role"]), "value": message["content"]}
        )
    return {"conversations": turns}


def _classification(example: Example) -> Record:
    if not example.texts or example.label is None:
        raise UnfitError("no text with a label")
    return {**dict(zip(("text", "text_pair"), example.texts, strict=False)), "label": example.label}


def _text(example: Example) -> Record:
    if len(example.texts) != 1 or example.label is not None:
        raise UnfitError("more than a text: use a form that keeps all of it")
    return {"text": example.texts[0]}


def _preference(example: Example) -> Record:
    if len(example.answers) != 2:
        raise UnfitError("a preference needs two answers: form 'responses' holds more")
    chosen, rejected = (list(answer) for answer in example.answers)
    margin = {"margin": example.margin} if example.margin else {}
    return {"prompt": _prompt(example), "chosen": chosen, "rejected": rejected, **margin}


def _responses(example: Example) -> Record:
    if len(example.answers) < 2:
        raise UnfitError("fewer than two answers, so there is nothing to compare")
    margin = {"margin": example.margin} if example.margin else {}
    answers = [list(answer) for answer in example.answers]
    return {"prompt": _prompt(example), "responses": answers, **margin}


def _prompt(example: Example) -> list[Message]:
    if not example.prompt:
        raise UnfitError("no prompt")
    return list(example.prompt)


def _system(prompt: Messages) -> tuple[Record, Messages]:
    """The system message as a field, and the remaining messages."""
    if prompt and prompt[0]["role"] == "system":
        return {"system": prompt[0]["content"]}, prompt[1:]
    return {}, prompt


def _answer(example: Example) -> Messages:
    if len(example.answers) != 1:
        raise UnfitError(
            "more or fewer than one answer: forms 'preference' and 'responses' hold several"
        )
    return example.answers[0]


def _content(messages: Messages, role: str, wanted: str) -> str:
    """The content of the only message."""
    (message,) = messages if len(messages) == 1 else ({},)
    if message.get("role") != role or set(message) != {"role", "content"}:
        raise UnfitError(wanted)
    return message["content"]


FORMS: Mapping[str, Callable[[Example], Record]] = {
    "instruction": _instruction,
    "completion": _completion,
    "messages": _messages,
    "conversation": lambda example: _messages(example, "conversation"),
    "sharegpt": _sharegpt,
    "classification": _classification,
    "text": _text,
    "preference": _preference,
    "responses": _responses,
}
