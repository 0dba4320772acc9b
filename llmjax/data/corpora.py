"""Corpora that come with Python packages, so that a first run downloads no data.

Each is written as JSON lines, one document a line, ready to be a `Source`. A file that already has
the right content is left alone, so that data prepared from it stay up to date.
"""

import collections
import hashlib
import importlib.util
import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

# The two sides of a conversation. Give them to `TokenizerConfig.symbols`: one token each.
SPEAKERS = ("A:", "B:")

# Only one letter, over and over, or the left hand drummed on the home row.
_SPAM = re.compile(r"([a-z])(\s*\1)*|(?!(?:sad|dad|as)$)[asdf\s]+", re.IGNORECASE)
# A dialogue with more of it was written for the word count.
_MAX_SPAM_SHARE = 0.2


def chitchat(path: str | Path, dataset: str | Path | None = None) -> dict[str, int]:
    r"""Writes the BYU Chit-Chat dialogues (package `chitchat-dataset`, MIT) as plain text.

    A document is a dialogue, a line is a turn: a speaker's mark, a space and all the messages that
    its sender wrote until the other answered, as in "A: Hello How are you?\nB: Fine\n". The marks
    go by who wrote first. White space within a message is one space; empty messages and such as
    "asdf" or "aaaa" are dropped, and so are dialogues that are full of them, that have fewer than
    two turns, and exact copies.

    Args:
        path: the JSON lines file to write.
        dataset: the package's `dataset.json`, found in the installed package if None.

    Returns:
        Counts: `dialogues` and `turns` written, `characters` of them, and what was dropped:
        `empty_messages`, `spam_messages`, `spam_dialogues`, `short_dialogues`, `copies`.

    Raises:
        ModuleNotFoundError: the package is not installed.
    """
    source = package_file("chitchat_dataset", "dataset.json") if dataset is None else Path(dataset)
    counts: collections.Counter[str] = collections.Counter(
        dialogues=0, turns=0, characters=0, empty_messages=0, spam_messages=0, spam_dialogues=0,
        short_dialogues=0, copies=0,
    )  # fmt: skip
    dialogues = json.loads(source.read_text(encoding="utf-8")).values()
    _write_lines(path, _clean_dialogues(dialogues, counts))
    return dict(counts)


def chat_prompt(turns: Sequence[str]) -> str:
    """The text that asks a model trained on `chitchat` for the next turn; it ends at a newline.

    Args:
        turns: what was said so far, by the two speakers in turn. It may be empty.
    """
    lines = [f"{SPEAKERS[i % 2]} {' '.join(turn.split())}\n" for i, turn in enumerate(turns)]
    return "".join(lines) + SPEAKERS[len(turns) % 2]


def python_topics(path: str | Path) -> dict[str, int]:
    """Writes the language reference that Python's own `help()` shows, one topic a document.

    Returns:
        Counts: `documents` and `characters` written.
    """
    # Half a megabyte of literals, wanted here only.
    from pydoc_data import topics

    texts = [text.strip() + "\n" for _, text in sorted(topics.topics.items())]
    _write_lines(path, texts)
    return {"documents": len(texts), "characters": sum(map(len, texts))}


def _clean_dialogues(
    dialogues: Iterable[Mapping[str, Any]], counts: collections.Counter[str]
) -> Iterator[str]:
    seen = set()
    for dialogue in dialogues:
        messages = [message for turn in dialogue["messages"] for message in turn]
        kept = list(_clean_messages(messages, counts))
        spam = sum(_SPAM.fullmatch(message["text"].strip()) is not None for message in messages)
        text = _turns(kept)
        digest = hashlib.blake2b(text.encode()).digest()
        turns = text.count("\n")
        if spam > _MAX_SPAM_SHARE * len(messages):
            counts["spam_dialogues"] += 1
        elif turns < 2:
            counts["short_dialogues"] += 1
        elif digest in seen:
            counts["copies"] += 1
        else:
            seen.add(digest)
            counts.update(dialogues=1, turns=turns, characters=len(text))
            yield text


def _clean_messages(
    messages: Iterable[Mapping[str, str]], counts: collections.Counter[str]
) -> Iterator[tuple[str, str]]:
    """(sender, text) of the messages worth keeping."""
    for message in messages:
        text = " ".join(message["text"].split())
        if not text:
            counts["empty_messages"] += 1
        elif _SPAM.fullmatch(text):
            counts["spam_messages"] += 1
        else:
            yield message["sender"], text


def _turns(messages: Sequence[tuple[str, str]]) -> str:
    """One line a turn, under the mark of its speaker."""
    marks: dict[str, str] = {}
    lines: list[tuple[str, list[str]]] = []
    for sender, text in messages:
        mark = marks.setdefault(sender, SPEAKERS[len(marks) % len(SPEAKERS)])
        if not lines or lines[-1][0] != mark:
            lines.append((mark, []))
        lines[-1][1].append(text)
    return "".join(f"{mark} {' '.join(texts)}\n" for mark, texts in lines)


def package_file(package: str, name: str) -> Path:
    """A data file of an installed package, found without importing the package.

    Raises:
        ModuleNotFoundError: the package is not installed.
    """
    spec = importlib.util.find_spec(package)
    if spec is None or not spec.submodule_search_locations:
        raise ModuleNotFoundError(
            f"the package {package.replace('_', '-')!r} is not installed: pip install "
            f"{package.replace('_', '-')}, or llmjax[demo]."
        )
    return Path(spec.submodule_search_locations[0]) / name


def _write_lines(path: str | Path, texts: Iterable[str]) -> None:
    write_records(path, ({"text": text} for text in texts))


def write_records(path: str | Path, records: Iterable[Mapping[str, Any]]) -> None:
    """Writes JSON lines, whole or not at all, unless they lie there already."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    content = "".join(json.dumps(record, ensure_ascii=False) + "\n" for record in records)
    data = content.encode()
    if path.is_file() and path.read_bytes() == data:
        return
    partial = path.with_name(path.name + ".partial")
    partial.write_bytes(data)
    partial.replace(path)
