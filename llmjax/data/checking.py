"""Quality checks of examples: each by itself, and training and test sets against each other."""

import collections
import dataclasses
import hashlib
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from llmjax.data import config, documents, examples, records
from llmjax.data.chat import ASSISTANT
from llmjax.data.cleaning import Document, Rejected, Step, clean

SHOWN = 10  # problems that a report lists with their location
# Prefixes of a label that was left in the text.
_MARKS = r"\b(?:label|class|category|sentiment|answer)\s*[:=]\s*[\"']?"


@dataclasses.dataclass(frozen=True)
class CheckConfig:
    """Requirements on examples.

    Attributes:
        labels: the allowed labels; empty allows any.
        shortest: minimum number of words in each text, question and answer.
        longest: maximum number of words; 0 for no limit.
        leak: an answer of at least this many words must not occur verbatim in its prompt; shorter
            answers ("yes") may. 0 disables the check.
    """

    labels: tuple[str, ...] = ()
    shortest: int = 1
    longest: int = 0
    leak: int = 5

    def __post_init__(self) -> None:
        if self.shortest < 0 or self.leak < 0 or 0 < self.longest < self.shortest:
            raise ValueError(
                f"CheckConfig has shortest={self.shortest}, longest={self.longest} and "
                f"leak={self.leak}: use 0 or more, and a longest of at least the shortest."
            )


@dataclasses.dataclass(frozen=True)
class Problem:
    """A problem and its location; `reason` is the same for all problems of a kind."""

    split: str
    file: str
    unit: str
    position: int
    reason: str
    detail: str = ""

    def __str__(self) -> str:
        place = f"{self.file}:{self.position}" + ("" if self.unit == "line" else f" ({self.unit})")
        return f"{place}: {self.reason}" + (f" ({self.detail})" if self.detail else "")


@dataclasses.dataclass
class Report:
    """The problems found in all splits.

    Attributes:
        counts: records read, by split.
        bad: records with at least one problem, by split.
        reasons: number of problems by reason.
        first: the first few problems, in reading order.
    """

    counts: collections.Counter[str] = dataclasses.field(default_factory=collections.Counter)
    bad: collections.Counter[str] = dataclasses.field(default_factory=collections.Counter)
    reasons: collections.Counter[str] = dataclasses.field(default_factory=collections.Counter)
    first: list[Problem] = dataclasses.field(default_factory=list)

    def as_dict(self) -> dict[str, Any]:
        """The report as plain values."""
        return {
            "examples": dict(self.counts),
            "bad": dict(self.bad),
            "reasons": dict(self.reasons.most_common()),
            "first": [dataclasses.asdict(problem) for problem in self.first],
        }


def quality_check(
    example: examples.Example,
    settings: CheckConfig = CheckConfig(),
    steps: Sequence[Step] = (),
) -> list[tuple[str, str]]:
    """Lists the problems of an example; the textbook's `quality_check` passes if there are none.

    Args:
        example: an example from `examples.parse`.
        settings: labels, lengths and leaks.
        steps: cleaning steps for language and content (`cleaning.Language`,
            `cleaning.HarmfulContent`). A text that a step rejects is a problem; one that a step
            would repair is not.

    Returns:
        Pairs of a reason and a detail, which may be "".
    """
    found: list[tuple[str, str]] = []
    label, names = example.label, settings.labels
    if names and label is not None and not examples.is_label(label, names):
        found.append(("unknown label", str(label)))
    spoken = [*example.texts, *(m["content"] for m in _said(example))]
    for text in spoken:
        size = len(text.split())
        if size < settings.shortest:
            found.append(("too few words", f"{size}"))
        elif 0 < settings.longest < size:
            found.append(("too many words", f"{size}"))
        result = clean(Document(text), steps)
        if isinstance(result, Rejected):
            found.append((result.reason, result.step))
    if settings.leak and (leaked := _leaked(example, settings.leak)):
        found.append(("the answer is in the prompt", leaked))
    return list(dict.fromkeys(found))


def check(
    sources: Mapping[str, config.ExampleSource],
    kind: config.Kind,
    settings: CheckConfig = CheckConfig(),
    steps: Sequence[Step] = (),
    advance: documents.Advance = lambda _: None,
) -> Report:
    """Checks all examples of some splits, each by itself and for duplicates.

    An example that was read before is a problem: "duplicate", or worse, "also in train" (or another
    split) or "duplicate with another answer" (or label). Examples are equal if their texts are,
    ignoring case and white space.

    Args:
        sources: sources by name of the split, such as `train` and `test`, in reading order.
        kind: kind of the examples.
        settings: requirements on the examples.
        steps: as for `quality_check`.
        advance: called with the number of bytes read since the last call.

    Raises:
        FileNotFoundError: a source has no files.
    """
    report = Report()
    seen: dict[bytes, tuple[str, str, bytes]] = {}
    for split, source in sources.items():
        for item in _read(source, advance):
            count = 1 if isinstance(item, records.Record) else item.count
            report.counts[split] += count
            found = _problems(split, item, kind, source, settings, steps, seen)
            report.bad[split] += count if found else 0
            for problem in found:
                report.reasons[problem.reason] += count
                if len(report.first) < SHOWN:
                    report.first.append(problem)
    return report


def _read(source: config.ExampleSource, advance: documents.Advance) -> Iterator[records.Item]:
    for file in documents.find_files(source, documents.RECORD_SUFFIXES):
        yield from records.read(file, advance)


def _problems(
    split: str,
    item: records.Item,
    kind: config.Kind,
    source: config.ExampleSource,
    settings: CheckConfig,
    steps: Sequence[Step],
    seen: dict[bytes, tuple[str, str, bytes]],
) -> list[Problem]:
    """The problems of one record, which is added to `seen`."""
    reasons: list[tuple[str, str]]
    if isinstance(item, documents.Rejected):
        reasons = [(item.reason, "")]
    else:
        try:
            example = examples.parse(item.fields, kind, source)
        except examples.UnfitError as error:
            reasons = [(str(error), "")]
        else:
            reasons = quality_check(example, settings, steps)
            reasons += _before(split, f"{item.file}:{item.position}", example, seen)
    return [
        Problem(split, item.file, item.unit, item.position, reason, detail)
        for reason, detail in reasons
    ]


def _before(
    split: str, place: str, example: examples.Example, seen: dict[bytes, tuple[str, str, bytes]]
) -> list[tuple[str, str]]:
    """Reports whether an equal example was read before."""
    asked = _digest(example.key)
    answer = _digest(repr((example.label, example.answers)))
    first = seen.setdefault(asked, (split, place, answer))
    if first == (split, place, answer):
        return []
    where = f"as {first[1]}"
    if first[0] != split:
        return [(f"also in {first[0]}", where)]
    if first[2] != answer:
        return [("duplicate with another answer", where)]
    return [("duplicate", where)]


def _digest(text: str) -> bytes:
    plain = " ".join(text.casefold().split())
    return hashlib.blake2b(plain.encode(errors="replace"), digest_size=16).digest()


def _said(example: examples.Example) -> list[dict]:
    """All messages with content, except the system's."""
    messages = [*example.prompt, *(m for answer in example.answers for m in answer)]
    return [dict(m) for m in messages if m["role"] != "system" and m["content"]]


def _leaked(example: examples.Example, least: int) -> str:
    """The part of an answer, or the label, that the prompt gives away."""
    if example.texts and example.label is not None:
        marked = re.compile(_MARKS + re.escape(str(example.label)) + r"(?!\w)", re.IGNORECASE)
        match = marked.search(" ".join(example.texts))
        return match[0] if match else ""
    prompt = " ".join(_words(" ".join(message["content"] for message in example.prompt)))
    for answer in example.answers:
        for message in answer:
            words = _words(message["content"]) if message["role"] == ASSISTANT else []
            if len(words) >= least and f" {' '.join(words)} " in f" {prompt} ":
                return " ".join(words[:least]) + " …"
    return ""


def _words(text: str) -> list[str]:
    return re.findall(r"\w+", text.casefold())
