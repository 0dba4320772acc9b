"""Alignment examples derived from conversations in Python packages.

As in `corpora`, each is written as JSON lines, and a file that already has the right content is
left alone. The preferences are *derived*: no person has compared these replies. VADER, a sentiment
lexicon with human scores (Hutto & Gilbert 2014), rates how friendly a reply is.
"""

import functools
import hashlib
import itertools
import json
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from llmjax.data import corpora

Message = dict[str, str]

_FRIENDLY, _NOT = 0.5, 0.0  # thresholds of VADER's compound score in [-1, 1]
_MESSAGES = 3  # of context before a reply
_CHARACTERS = 200  # maximum length of a message
_REPLIES = 20_000  # of fifty thousand: more than the demos read


def openings(path: str | Path) -> dict[str, int]:
    """Writes the beginnings of conversations, up to a reply: prompts (`chitchat-dataset`, MIT).

    Returns:
        Counts: `examples` written.

    Raises:
        ModuleNotFoundError: the package is not installed.
    """
    records = [{"messages": messages} for messages, _ in _replies()]
    corpora.write_records(path, records)
    return {"examples": len(records)}


def friendly_replies(path: str | Path) -> dict[str, int]:
    """Writes comparisons of replies in conversations; the friendlier reply is chosen.

    A prompt comes with its own reply and a reply to another prompt, one of which the lexicon finds
    friendly and the other not. Either may be the chosen one, so fit to the prompt reveals nothing.

    Returns:
        Counts: `examples` written.

    Raises:
        ModuleNotFoundError: `chitchat-dataset` or `vaderSentiment` is not installed.
    """
    sentiment = compound()
    scored = [(messages, reply, sentiment(reply)) for messages, reply in _replies()]
    friendly = [reply for _, reply, score in scored if score >= _FRIENDLY]
    other = [reply for _, reply, score in scored if score <= _NOT]
    records = []
    for number, (messages, reply, score) in enumerate(scored):
        # A stride other than 1, so that replies come from other conversations.
        if score >= _FRIENDLY:
            chosen, rejected = reply, other[number * 7919 % len(other)]
        elif score <= _NOT:
            chosen, rejected = friendly[number * 7919 % len(friendly)], reply
        else:
            continue
        records.append({"prompt": messages, "chosen": chosen, "rejected": rejected})
    corpora.write_records(path, records)
    return {"examples": len(records)}


@functools.cache  # because it reads the lexicon
def compound() -> Callable[[str], float]:
    """VADER's sentiment of a text, in [-1, 1].

    Raises:
        ModuleNotFoundError: the package is not installed.
    """
    try:
        from vaderSentiment.vaderSentiment import SentimentIntensityAnalyzer
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            "the package 'vaderSentiment' is not installed: pip install vaderSentiment, or "
            "llmjax[demo]."
        ) from error
    analyzer = SentimentIntensityAnalyzer()
    return lambda text: analyzer.polarity_scores(text)["compound"]


def _replies() -> Iterator[tuple[list[Message], str]]:
    """Distinct contexts of alternating user and assistant messages, with the assistant's reply."""
    return itertools.islice(_all_replies(), _REPLIES)


def _all_replies() -> Iterator[tuple[list[Message], str]]:
    seen = set()
    for text in _dialogues():
        turns = [line.partition(" ")[2] for line in text.splitlines()]
        for at in range(1, len(turns), 2):
            first = max(0, at - _MESSAGES)
            first += (at - first) % 2 == 0  # the user speaks first
            said = turns[first:at]
            if any(len(turn) > _CHARACTERS for turn in turns[first : at + 1]):
                continue
            digest = hashlib.blake2b(json.dumps([said, turns[at]]).encode()).digest()
            if digest in seen:
                continue
            seen.add(digest)
            roles = ("user", "assistant")
            messages = [{"role": roles[i % 2], "content": turn} for i, turn in enumerate(said)]
            yield messages, turns[at]


def _dialogues() -> Iterable[str]:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "chitchat.jsonl"
        corpora.chitchat(path)
        lines = path.read_text("utf-8").splitlines()
    return (json.loads(line)["text"] for line in lines)


EXAMPLES: Mapping[str, Callable[[str | Path], Any]] = {
    "chatterbot": corpora.chatterbot,
    "openings": openings,
    "friendly_replies": friendly_replies,
}
