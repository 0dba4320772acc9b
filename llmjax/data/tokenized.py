"""Examples as tokens: by a chat template, cut to a length, and as bytes on disk.

A sequence is int32 [S]: a token t that is trained stands as t, one that is not as ~t, which is
below 0. What a token is and whether it is trained so never come apart.
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
# Number of sequences, label, margin, bytes of the extra fields; the sequences' lengths follow,
# then the sequences, then the fields as JSON.
_HEADER = struct.Struct("<Iifi")


@dataclasses.dataclass(frozen=True)
class Tokenized:
    """An example in tokens.

    Attributes:
        sequences: one, or of a comparison its answers from best to worst, each with the prompt in
            front; int32 [S] each, ~token where it is not trained.
        label: its number, -1 where there is none.
        margin: by how much the better of two answers is better.
        extra: what else the record had, for those who judge answers to a prompt.
    """

    sequences: tuple[np.ndarray, ...]
    label: int = NO_LABEL
    margin: float = 0.0
    extra: Mapping[str, Any] = dataclasses.field(default_factory=dict)

    @property
    def length(self) -> int:
        """Tokens of all sequences."""
        return sum(map(len, self.sequences))

    def to_bytes(self) -> bytes:
        """The example as a record of a shard."""
        extra = json.dumps(dict(self.extra), default=str).encode() if self.extra else b""
        lengths = np.array([len(sequence) for sequence in self.sequences], "<u4")
        header = _HEADER.pack(len(lengths), self.label, self.margin, len(extra))
        tokens = [sequence.astype("<i4", copy=False).tobytes() for sequence in self.sequences]
        return b"".join([header, lengths.tobytes(), *tokens, extra])

    @classmethod
    def from_bytes(cls, record: bytes) -> "Tokenized":
        """The example of a record of a shard."""
        count, label, margin, extra_bytes = _HEADER.unpack_from(record)
        lengths = np.frombuffer(record, "<u4", count, _HEADER.size)
        start = _HEADER.size + lengths.nbytes
        tokens = np.frombuffer(record, "<i4", int(lengths.sum()), start).astype(np.int32)
        ends = np.cumsum(lengths)[:-1]
        extra = json.loads(record[len(record) - extra_bytes :]) if extra_bytes else {}
        return cls(tuple(np.split(tokens, ends)), label, margin, extra)


def signed(tokens: np.ndarray, trained: np.ndarray) -> np.ndarray:
    """Tokens [S] and whether they are trained, bool [S], as a sequence [S]."""
    return np.where(trained, tokens, ~tokens).astype(np.int32)


def unsigned(sequence: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The inverse of `signed`."""
    trained = sequence >= 0
    return np.where(trained, sequence, ~sequence), trained


class Encoder:
    """Makes tokens of examples, as a config says.

    Args:
        settings: which answers are trained, and how long sequences may be.
        tokenizer: of the model that is fine-tuned.
        template: its chat template; None where examples are texts.
    """

    def __init__(
        self,
        settings: config.ExampleConfig,
        tokenizer: Tokenizer,
        template: ChatTemplate | None,
    ) -> None:
        self._settings, self._tokenizer, self._template = settings, tokenizer, template
        self._longest = settings.max_length
        self._opening = np.array(tokenizer.opening, np.int32)

    def encode(self, example: Example) -> Tokenized:
        """An example's sequences, no longer than `max_length`; its label is left to the caller.

        Raises:
            UnfitError: nothing would be left to train on, or the template refuses the messages.
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
        """A text between bos and eos, all of it trained; its end is cut."""
        ids = [*self._tokenizer.opening, *self._tokenizer.encode(text), self._tokenizer.eos_id]
        return np.array(ids[: self._longest], np.int32)

    def _to_classify(self, texts: Sequence[str]) -> np.ndarray:
        """Texts with eos behind each, none of it trained; the longer loses its end first."""
        parts = self._tokenizer.encode_batch(texts)
        over = sum(map(len, parts)) + len(self._opening) + len(parts) - self._longest
        while over > 0:
            longest = max(parts, key=len)
            rest = sum(map(len, parts)) - len(longest)
            # Down to the other's length, then both in turn.
            cut = min(over, max(1, len(longest) - rest)) if len(parts) > 1 else over
            del longest[len(longest) - cut :]
            over -= cut
        ids = [*self._tokenizer.opening]
        for part in parts:
            ids += [*part, self._tokenizer.eos_id]
        return ~np.array(ids, np.int32)

    def _to_answer(self, prompt: Messages) -> np.ndarray:
        """A prompt up to where the answer begins, none of it trained; it loses its beginning."""
        tokens = self._prompt_tokens(prompt)
        while len(tokens) > self._longest and (shorter := without_oldest_turn(prompt)):
            prompt = shorter
            tokens = self._prompt_tokens(prompt)
        return self._without_beginning(~tokens, len(tokens), self._longest)

    def _parted(self, example: Example) -> tuple[Messages, tuple[Messages, ...]]:
        """Prompt and answers; only the last answer of a conversation where no other is trained."""
        if self._settings.kind != "sft" or self._settings.train_on == "answers":
            return example.prompt, example.answers
        messages = (*example.prompt, *example.answers[0])
        last = max(i for i, message in enumerate(messages) if message["role"] == ASSISTANT)
        return messages[:last], (messages[last:],)

    def _dialogue(self, prompt: Messages, answers: Sequence[Messages]) -> list[np.ndarray]:
        """A sequence for every answer, with as much of the prompt in each as in the others."""
        sequences = [self._sequence(prompt, answer) for answer in answers]
        if all(len(sequence) <= self._longest for sequence in sequences):
            return sequences
        target = max(len(sequence) - _prompt_length(sequence) for sequence in sequences)
        allowed = min(target, math.ceil(self._settings.target_share * self._longest))
        # Where the first token is trained, something must stand in front that predicts it.
        room = max(1, self._longest - allowed)
        while _prompt_length(sequences[0]) > room and (shorter := without_oldest_turn(prompt)):
            prompt = shorter
            sequences = [self._sequence(prompt, answer) for answer in answers]
        return [
            self._without_beginning(sequence, _prompt_length(sequence), room)[: self._longest]
            for sequence in sequences
        ]

    def _without_beginning(self, sequence: np.ndarray, prompt: int, room: int) -> np.ndarray:
        """A sequence whose prompt has lost as many tokens as it was too long, but not bos."""
        if prompt <= room:
            return sequence
        kept = len(self._opening)
        if kept >= room or not np.array_equal(~sequence[:kept], self._opening):
            kept = 0
        return np.concatenate([sequence[:kept], sequence[prompt - room + kept :]])

    def _sequence(self, prompt: Messages, answer: Messages) -> np.ndarray:
        """A prompt and its answer, of which the assistant's words are trained."""
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
        assert self._template is not None, "messages are encoded with a template only"
        return self._template


def without_oldest_turn(messages: Messages) -> Messages | None:
    """Messages without the user's first and what answers it; None if that is the user's only one.

    What the system says in front of it stays.
    """
    users = [i for i, message in enumerate(messages) if message["role"] == "user"]
    if len(users) < 2:
        return None
    system = tuple(message for message in messages[: users[0]] if message["role"] != ASSISTANT)
    return (*system, *messages[users[1] :])


def _prompt_length(sequence: np.ndarray) -> int:
    """Tokens in front of the first that is trained."""
    trained = sequence >= 0
    return int(np.argmax(trained)) if trained.any() else len(sequence)


def _common(one: np.ndarray, other: np.ndarray) -> int:
    """Tokens that both begin with."""
    length = min(len(one), len(other))
    differs = one[:length] != other[:length]
    return int(np.argmax(differs)) if differs.any() else length


def _reason(error: ValueError) -> str:
    """An error's words without the conversation that it shows, so that equal ones are counted."""
    return str(error).partition("[{")[0].removesuffix("The conversation is ").rstrip(": ")
