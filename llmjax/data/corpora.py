"""Corpora from Python packages, so that a first run downloads no data.

Each is written as JSON lines, one document or example per line, ready to be a `Source` or an
`ExampleSource`. A file that already has the right content is left alone, so that data prepared
from it stay up to date.
"""

import collections
import contextlib
import hashlib
import html
import importlib.util
import itertools
import json
import random
import re
import tarfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

# The two sides of a conversation. Pass them to `TokenizerConfig.symbols`: one token each.
SPEAKERS = ("A:", "B:")

# Prompts for the texts of VADER's domains.
SENTIMENT_PROMPTS: Mapping[str, str] = {
    "movieReviewSnippets": "A film review: ",
    "amazonReviewSnippets": "A product review: ",
    "nytEditorialSnippets": "An editorial: ",
    "tweets": "A message: ",
}

# A single letter repeated, or keys mashed on the home row.
_SPAM = re.compile(r"([a-z])(\s*\1)*|(?!(?:sad|dad|as)$)[asdf\s]+", re.IGNORECASE)
# A dialogue with a larger share of spam was written only to reach the word count.
_MAX_SPAM_SHARE = 0.2


def chitchat(path: str | Path, dataset: str | Path | None = None) -> dict[str, int]:
    r"""Writes the BYU Chit-Chat dialogues (package `chitchat-dataset`, MIT) as plain text.

    A document is a dialogue and a line is a turn: a speaker's mark, a space and all messages that
    the speaker wrote until the other answered, as in "A: Hello How are you?\nB: Fine\n". A is the
    speaker who wrote first. White space within a message becomes one space. Empty messages and
    those like "asdf" or "aaaa" are dropped; so are dialogues full of them, dialogues of fewer than
    two turns, and exact copies.

    Args:
        path: the JSON lines file to write.
        dataset: the package's `dataset.json`; None finds the installed one.

    Returns:
        Counts: `dialogues`, `turns` and `characters` written, and what was dropped:
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
    _write_texts(path, _clean_dialogues(dialogues, counts))
    return dict(counts)


def chat_prompt(turns: Sequence[str]) -> str:
    """The prompt for the next turn of a model trained on `chitchat`; it ends with a speaker's mark.

    Args:
        turns: the turns so far, alternating between the two speakers. It may be empty.
    """
    lines = [f"{SPEAKERS[i % 2]} {' '.join(turn.split())}\n" for i, turn in enumerate(turns)]
    return "".join(lines) + SPEAKERS[len(turns) % 2]


def python_topics(path: str | Path) -> dict[str, int]:
    """Writes the language reference that Python's own `help()` shows, one document per topic.

    Returns:
        Counts: `documents` and `characters` written.
    """
    # Half a megabyte of literals, needed only here.
    from pydoc_data import topics

    texts = [text.strip() + "\n" for _, text in sorted(topics.topics.items())]
    _write_texts(path, texts)
    return {"documents": len(texts), "characters": sum(map(len, texts))}


def chatterbot(path: str | Path, folder: str | Path | None = None) -> dict[str, int]:
    """Writes the English conversations of package `chatterbot-corpus` (BSD), for `sft`.

    The user speaks first in each. A last message without an answer is dropped, and so are copies.

    Args:
        path: the JSON lines file to write.
        folder: the package's folder of YAML files; None finds the installed one.

    Returns:
        Counts: `conversations` and `turns` written; `copies` and `short_conversations` (fewer than
        two turns) dropped.

    Raises:
        ModuleNotFoundError: the package is not installed.
        FileNotFoundError: there are no YAML files in the folder.
    """
    # Other corpora do not need yaml.
    import yaml

    found = package_file("chatterbot_corpus", "data/english") if folder is None else Path(folder)
    files = sorted(found.glob("*.yml"))
    if not files:
        raise FileNotFoundError(f"no conversations in {str(found)!r}: it has no file *.yml.")
    counts = collections.Counter(conversations=0, turns=0, copies=0, short_conversations=0)
    seen = set()
    records = []
    for file in files:
        content = yaml.safe_load(file.read_text(encoding="utf-8"))
        for conversation in content["conversations"]:
            turns = tuple(str(turn).strip() for turn in conversation if turn is not None)
            turns = turns[: len(turns) // 2 * 2]
            if not turns or not all(turns):
                counts["short_conversations"] += 1
            elif turns in seen:
                counts["copies"] += 1
            else:
                seen.add(turns)
                counts.update(conversations=1, turns=len(turns))
                roles = itertools.cycle(("user", "assistant"))
                messages = [
                    {"role": role, "content": turn}
                    for role, turn in zip(roles, turns, strict=False)
                ]
                records.append({"messages": messages, "category": file.stem})
    write_records(path, records)
    return dict(counts)


def sentiment(path: str | Path, archive: str | Path, least: float = 1.0) -> dict[str, int]:
    """Writes texts with human sentiment scores from bad to good, for `classification`.

    The texts are those that VADER was built from (Hutto and Gilbert 2014): film and product
    reviews, tweets and editorials, each with a mean score from -4 to 4. They come with the source
    distribution of `vaderSentiment` 3.3.2 (MIT), not with its wheel.

    Args:
        path: the JSON lines file to write: `text`, `label` (`negative` or `positive`), `score` and
            `domain` (such as `movieReviewSnippets`).
        archive: `vaderSentiment-3.3.2.tar.gz`, or the `hutto_ICWSM_2014.tar.gz` inside it.
        least: minimum absolute score; other texts are dropped.

    Returns:
        Counts: `negative` and `positive` texts.

    Raises:
        ValueError: the archive holds no scored texts.
    """
    records = [
        {
            "text": text,
            "label": "positive" if score > 0 else "negative",
            "score": score,
            "domain": domain,
        }
        for domain, text, score in _scored_texts(Path(archive))
        if abs(score) >= least
    ]
    write_records(path, records)
    counts = collections.Counter(str(record["label"]) for record in records)
    return {name: counts[name] for name in ("negative", "positive")}


def sentiment_pairs(
    path: str | Path, archive: str | Path, margin: float = 1.0, seed: int = 0
) -> dict[str, int]:
    """Writes pairs of the texts of `sentiment`, the better one chosen, for `comparison`.

    The preferences are derived: nobody compared the two texts, whose scores differ by `margin` or
    more. Every text is in at most one pair, with another of its domain. All prompts of a domain are
    the same, so hold out by `pair`: split="grouped", split_field="pair".

    Args:
        path: the JSON lines file to write: `prompt`, `chosen`, `rejected`, `margin`, and `pair`.
        archive: as for `sentiment`.
        margin: minimum difference of the two scores.
        seed: random seed of the order in which texts are paired.

    Returns:
        Counts: `pairs`, and `alone`, the texts left without a partner.

    Raises:
        ValueError: the archive holds no scored texts.
    """
    by_domain: dict[str, list[tuple[str, float]]] = {}
    for domain, text, score in _scored_texts(Path(archive)):
        by_domain.setdefault(domain, []).append((text, score))
    records: list[dict[str, Any]] = []
    alone = 0
    for domain, texts in by_domain.items():
        random.Random(seed).shuffle(texts)
        waiting: list[tuple[str, float]] = []
        for text, score in texts:
            fits = (i for i, (_, other) in enumerate(waiting) if abs(score - other) >= margin)
            match = next(fits, None)
            if match is None:
                waiting.append((text, score))
                continue
            better, worse = sorted([(text, score), waiting.pop(match)], key=lambda t: -t[1])
            records.append(
                {
                    "prompt": SENTIMENT_PROMPTS.get(domain, "A text: "),
                    "chosen": better[0],
                    "rejected": worse[0],
                    "margin": better[1] - worse[1],
                    "pair": len(records),
                }
            )
        alone += len(waiting)
    write_records(path, records)
    return {"pairs": len(records), "alone": alone}


def _scored_texts(archive: Path) -> list[tuple[str, str, float]]:
    """(domain, text, mean score) of all texts in an archive, or in the archive inside it."""
    found: dict[tuple[str, str], float] = {}
    with tarfile.open(archive) as outer, contextlib.ExitStack() as stack:
        inner = [name for name in outer.getnames() if name.endswith("/hutto_ICWSM_2014.tar.gz")]
        opened = outer
        if inner:
            opened = stack.enter_context(tarfile.open(fileobj=outer.extractfile(inner[0])))
        for name in sorted(opened.getnames()):
            domain, is_truth, _ = Path(name).name.partition("_GroundTruth.txt")
            stream = opened.extractfile(name) if is_truth else None
            for line in stream.read().decode().splitlines() if stream else ():
                _, score, text = line.split("\t")
                found.setdefault((domain, html.unescape(text).strip()), float(score))
    if not found:
        raise ValueError(
            f"{str(archive)!r} holds no texts with scores (*_GroundTruth.txt). Give the source "
            "distribution of vaderSentiment 3.3.2, vaderSentiment-3.3.2.tar.gz."
        )
    return [(domain, text, score) for (domain, text), score in found.items() if text]


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
    """One line per turn, starting with its speaker's mark."""
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


def _write_texts(path: str | Path, texts: Iterable[str]) -> None:
    write_records(path, ({"text": text} for text in texts))


def write_records(path: str | Path, records: Iterable[Mapping[str, Any]]) -> None:
    """Writes JSON lines atomically, unless the file already has this content."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    content = "".join(json.dumps(record, ensure_ascii=False) + "\n" for record in records)
    data = content.encode()
    if path.is_file() and path.read_bytes() == data:
        return
    partial = path.with_name(path.name + ".partial")
    partial.write_bytes(data)
    partial.replace(path)
