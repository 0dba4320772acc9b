"""Tokenised examples: applies the chat template, cuts to a length, and serialises.

A sequence is int32 [S]: a trained token t is stored as t, any other as ~t, which is negative. So a
token and whether it is trained cannot get out of step.
"""

import dataclasses
import json
import math
import struct
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from llmjax.data import config
from llmjax.data.chat import ASSISTANT, ChatTemplate
from llmjax.data.examples import Example, Messages, UnfitError
from llmjax.data.tokenizer import Tokenizer

NO_LABEL = -1
# Number of sequences, label, margin, bytes of the extra fields; followed by the lengths of the
# sequences, the sequences, and the fields as JSON.
_HEADER = struct.Struct("<Iifi")


@dataclasses.dataclass(frozen=True)
class Tokenized:
    """A tokenised example.

    Attributes:
        sequences: one; or the answers of a comparison from best to worst, each preceded by the
            prompt. int32 [S] each, ~token where it is not trained.
        label: its number; -1 for none.
        margin: by how much the better of two answers is better.
        extra: the record's other fields, for judging answers to a prompt.
    """

    sequences: tuple[np.ndarray, ...]
    label: int = NO_LABEL
    margin: float = 0.0
    extra: Mapping[str, Any] = dataclasses.field(default_factory=dict)

    @property
    def length(self) -> int:
        """Tokens of all sequences together."""
        return sum(map(len, self.sequences))

    def to_bytes(self) -> bytes:
        """Serialises the example as a record of a shard."""
        extra = json.dumps(dict(self.extra), default=str).encode() if self.extra else b""
        lengths = np.array([len(sequence) for sequence in self.sequences], "<u4")
        header = _HEADER.pack(len(lengths), self.label, self.margin, len(extra))
        tokens = [sequence.astype("<i4", copy=False).tobytes() for sequence in self.sequences]
        return b"".join([header, lengths.tobytes(), *tokens, extra])

    @classmethod
    def from_bytes(cls, record: bytes) -> "Tokenized":
        """Reads the example from a record of a shard."""
        count, label, margin, extra_bytes = _HEADER.unpack_from(record)
        lengths = np.frombuffer(record, "<u4", count, _HEADER.size)
        start = _HEADER.size + lengths.nbytes
        tokens = np.frombuffer(record, "<i4", int(lengths.sum()), start).astype(np.int32)
        ends = np.cumsum(lengths)[:-1]
        extra = json.loads(record[len(record) - extra_bytes :]) if extra_bytes else {}
        return cls(tuple(np.split(tokens, ends)), label, margin, extra)


def signed(tokens: np.ndarray, trained: np.ndarray) -> np.ndarray:
    """Encodes tokens [S] and whether they are trained, bool [S], as a sequence [S]."""
    return np.where(trained, tokens, ~tokens).astype(np.int32)


def unsigned(sequence: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The inverse of `signed`."""
    trained = sequence >= 0
    return np.where(trained, sequence, ~sequence), trained


class Encoder:
    """Tokenises examples according to a config.

    Args:
        settings: which answers are trained, and the maximum length.
        tokenizer: that of the model to be fine-tuned.
        template: its chat template; None if examples are texts.

    Attributes:
        cut: number of examples so far that were longer than `max_length`.
    """

    def __init__(
        self,
        settings: config.ExampleConfig,
        tokenizer: Tokenizer,
        template: ChatTemplate | None,
    ) -> None:
        self._settings, self._tokenizer, self._template = settings, tokenizer, template
        self._longest, self.cut = settings.max_length, 0
        self._opening = np.array(tokenizer.opening, np.int32)

    def encode(self, example: Example) -> Tokenized:
        """An example's sequences of at most `max_length` tokens; the caller sets the label.

        Raises:
            UnfitError: nothing would be left to train on, or the template rejects the messages.
        """
        if self._settings.kind == "classification":
            return Tokenized((self._to_classify(example.texts),))
        if self._settings.kind == "prompt":
            return Tokenized((self._to_answer(example.prompt),), extra=example.extra)
        if example.texts:
            sequences = [self._text(example.texts[0])]
        else:
            sequences = self._dialogue(*self._parted(example))
        if not all((sequence[1:] >= 0).any() for sequence in sequences):
            raise UnfitError("nothing to train on")
        for i, sequence in enumerate(sequences):
            if any(np.array_equal(sequence, other) for other in sequences[:i]):
                raise UnfitError("two responses are the same up to max_length")
        return Tokenized(tuple(sequences), margin=example.margin)

    def _text(self, text: str) -> np.ndarray:
        """A text between bos and eos, trained in full; its end is cut."""
        ids = [*self._tokenizer.opening, *self._tokenizer.encode(text), self._tokenizer.eos_id]
        self.cut += len(ids) > self._longest
        return np.array(ids[: self._longest], np.int32)

    def _to_classify(self, texts: Sequence[str]) -> np.ndarray:
        """Texts with eos after each, not trained; the longer text is cut first, at its end."""
        parts = self._tokenizer.encode_batch(texts)
        over = sum(map(len, parts)) + len(self._opening) + len(parts) - self._longest
        self.cut += over > 0
        while over > 0:
            longest = max(parts, key=len)
            rest = sum(map(len, parts)) - len(longest)
            # Cuts it down to the other's length, then both alternately.
            cut = min(over, max(1, len(longest) - rest)) if len(parts) > 1 else over
            del longest[len(longest) - cut :]
            over -= cut
        ids = [*self._tokenizer.opening]
        for part in parts:
            ids += [*part, self._tokenizer.eos_id]
        return ~np.array(ids, np.int32)

    def _to_answer(self, prompt: Messages) -> np.ndarray:
        """A prompt up to where the answer begins, not trained; it is cut at its beginning."""
        tokens = self._prompt_tokens(prompt)
        self.cut += len(tokens) > self._longest
        while len(tokens) > self._longest and (shorter := without_oldest_turn(prompt)):
            prompt = shorter
            tokens = self._prompt_tokens(prompt)
        return self._without_beginning(~tokens, len(tokens), self._longest)

    def _parted(self, example: Example) -> tuple[Messages, tuple[Messages, ...]]:
        """Prompt and answers; if only the last answer is trained, all before it is prompt."""
        if self._settings.kind != "sft" or self._settings.train_on == "answers":
            return example.prompt, example.answers
        messages = (*example.prompt, *example.answers[0])
        last = max(i for i, message in enumerate(messages) if message["role"] == ASSISTANT)
        return messages[:last], (messages[last:],)

    def _dialogue(self, prompt: Messages, answers: Sequence[Messages]) -> list[np.ndarray]:
        """A sequence per answer, each with the same part of the prompt."""
        sequences = [self._sequence(prompt, answer) for answer in answers]
        if all(len(sequence) <= self._longest for sequence in sequences):
            return sequences
        self.cut += 1
        target = max(len(sequence) - _prompt_length(sequence) for sequence in sequences)
        allowed = min(target, math.ceil(self._settings.target_share * self._longest))
        # The first trained token needs at least one token before it to predict it from.
        room = max(1, self._longest - allowed)
        while _prompt_length(sequences[0]) > room and (shorter := without_oldest_turn(prompt)):
            prompt = shorter
            sequences = [self._sequence(prompt, answer) for answer in answers]
        return [
            self._without_beginning(sequence, _prompt_length(sequence), room)[: self._longest]
            for sequence in sequences
        ]

    def _without_beginning(self, sequence: np.ndarray, prompt: int, room: int) -> np.ndarray:
        """Cuts the prompt to `room` tokens at its beginning, but keeps bos."""
        if prompt <= room:
            return sequence
        kept = len(self._opening)
        if kept >= room or not np.array_equal(~sequence[:kept], self._opening):
            kept = 0
        return np.concatenate([sequence[:kept], sequence[prompt - room + kept :]])

    def _sequence(self, prompt: Messages, answer: Messages) -> np.ndarray:
        """A prompt and its answer, with the assistant's words trained."""
        once = sum(message["role"] == ASSISTANT for message in answer) == 1
        try:
            tokens, trained = self._chat.encode([*prompt, *answer], turns="last" if once else "all")
        except ValueError as error:
            raise UnfitError(_reason(error)) from error
        if not once and any(message["role"] == ASSISTANT for message in prompt):
            trained = trained & (
                np.arange(len(tokens)) >= _common(self._prompt_tokens(prompt), tokens)
            )
        return signed(tokens, trained)

    def _prompt_tokens(self, prompt: Messages) -> np.ndarray:
        try:
            return self._chat.encode(prompt, add_generation_prompt=True)[0]
        except ValueError as error:
            raise UnfitError(_reason(error)) from error

    @property
    def _chat(self) -> ChatTemplate:
        assert self._template is not None, "messages need a chat template"
        return self._template


def without_oldest_turn(messages: Messages) -> Messages | None:
    """Drops the user's first message and its answers; None if it is the user's only message.

    System messages before it stay.
    """
    users = [i for i, message in enumerate(messages) if message["role"] == "user"]
    if len(users) < 2:
        return None
    system = tuple(message for message in messages[: users[0]] if message["role"] != ASSISTANT)
    return (*system, *messages[users[1] :])


def _prompt_length(sequence: np.ndarray) -> int:
    """Number of tokens before the first trained one."""
    trained = sequence >= 0
    return int(np.argmax(trained)) if trained.any() else len(sequence)


def _common(one: np.ndarray, other: np.ndarray) -> int:
    """Length of the common prefix."""
    length = min(len(one), len(other))
    differs = one[:length] != other[:length]
    return int(np.argmax(differs)) if differs.any() else length


def _reason(error: ValueError) -> str:
    """An error's message without the conversation, so that equal errors are counted together."""
    return str(error).partition("[{")[0].removesuffix("The conversation is ").rstrip(": ")
