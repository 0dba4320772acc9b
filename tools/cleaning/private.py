"""Precision and recall on planted personal data and on the headers of real mails."""

import collections
import email
import random
import re
import time
from collections.abc import Iterable, Iterator

from llmjax.data.cleaning import personal
from tools import corpora
from tools.cleaning import planted

PLANTED, MAILS = 2_000, 500
# (kind, start, end)
Label = tuple[str, int, int]
# Addresses that RFC 6890 and RFC 5771 reserve.
_NOT_PUBLIC = re.compile(
    r"(?:0|10|127|22[4-9]|2[3-5]\d)\.|192\.168\.|169\.254\.|172\.(?:1[6-9]|2\d|3[01])\."
    r"|192\.0\.[02]\.|198\.1[89]\.|100\.(?:6[4-9]|[7-9]\d|1[01]\d|12[0-7])\."
)
# RFC 5322 addresses under top-level domains that existed in 2002.
_ADDRESS = re.compile(
    r"(?<![\w.!#$%&'*+/=?^`{|}~-])[\w.!#$%&'*+/=?^`{|}~-]+"
    r"@(?:[a-z\d-]+\.)+(?:com|net|org|edu|gov|mil|int|info|biz|[a-z]{2})(?![\w-])",
    re.IGNORECASE,
)
_BYTE = r"(?:25[0-5]|2[0-4]\d|1?\d?\d)"
_QUAD = re.compile(rf"(?:(?<=[\[(])|(?<=from )|(?<=by ))(?:{_BYTE}\.){{3}}{_BYTE}(?![\w.])")
HEADERS = (
    *("from", "to", "cc", "reply-to", "sender", "return-path", "received", "delivered-to"),
    *("subject", "date", "x-mailer", "mime-version", "content-type"),
)


def planted_texts(seed: int = 0) -> Iterator[tuple[str, list[Label]]]:
    """Debian's descriptions with planted personal data and with harmless numbers."""
    draw = random.Random(seed)
    makers = planted.planted(draw)
    carriers = [
        record["text"]
        for record in corpora.read(corpora.fetch("debian"), "en")
        if "@" not in record["text"]
    ]
    for carrier in draw.sample(carriers, PLANTED):
        kinds = draw.choices(sorted(makers), k=draw.randrange(1, 5))
        sentences: list[tuple[str, str]] = [(kind, makers[kind]()) for kind in kinds]
        sentences += [("", planted.harmless(draw)) for _ in range(2)]
        sentences += [("", paragraph) for paragraph in carrier.split("\n\n")]
        draw.shuffle(sentences)
        text, labels = "", list[Label]()
        for kind, sentence in sentences:
            before, *rest = sentence.split("\0")
            text += before
            if kind:
                labels.append((kind, len(text), len(text) + len(rest[0])))
            text += "".join(rest) + draw.choice([" ", "\n", "\n\n"])
        yield text, labels


def mails(seed: int = 0) -> Iterator[tuple[str, list[Label]]]:
    """Header fields of real mails, where addresses of people and machines are delimited."""
    records = list(corpora.read(corpora.fetch("mails")))
    for record in random.Random(seed).sample(records, MAILS):
        message = email.message_from_string(record["text"])
        lines, labels = "", list[Label]()
        for name, value in message.items():
            value = str(value)
            if name.lower() not in HEADERS:
                continue
            marked = [("email", item) for item in _ADDRESS.findall(value)]
            marked += [("ip", item) for item in _QUAD.findall(value) if not _NOT_PUBLIC.match(item)]
            start = len(lines) + len(name) + 2
            labels += [
                (kind, start + found.start(), start + found.end())
                for kind, item in sorted(set(marked))
                for found in re.finditer(rf"(?<![\w.]){re.escape(item)}(?![\w])", value)
            ]
            lines += f"{name}: {value}\n"
        yield lines, labels


def judge(
    texts: Iterable[tuple[str, list[Label]]], show: bool = False
) -> Iterator[dict[str, object]]:
    """Recall and precision by kind, and the detection time.

    A label is found if a detection of its kind covers it; a detection that covers no label is
    wrong.
    """
    right: collections.Counter[str] = collections.Counter()
    known, wrong = collections.Counter(right), collections.Counter(right)
    seconds, count = 0.0, 0
    for text, labels in texts:
        start = time.process_time()
        found = [(item.kind, item.start, item.end) for item in personal.find(text)]
        seconds += time.process_time() - start
        count += 1
        known.update(kind for kind, _, _ in labels)
        hits = {label for label in labels if any(map(_covers, found, [label] * len(found)))}
        right.update(kind for kind, _, _ in hits)
        missed = set(labels) - hits
        others = [item for item in found if not any(_covers(item, label) for label in labels)]
        wrong.update(kind for kind, _, _ in others)
        for kind, a, b in [*missed, *others] if show else ():
            verdict = "missed" if (kind, a, b) in missed else "wrong"
            print(verdict, kind, repr(text[a:b]), "in", repr(text[max(0, a - 30) : b + 20]))
    for kind in sorted(known | wrong):
        yield {
            "kind": kind,
            "labels": known[kind],
            "wrong": wrong[kind],
            "recall": right[kind] / max(known[kind], 1),
            "precision": right[kind] / max(right[kind] + wrong[kind], 1),
        }
    yield {"count": count, "seconds": seconds}


def _covers(found: Label, label: Label) -> bool:
    return found[0] == label[0] and found[1] <= label[1] and found[2] >= label[2]
