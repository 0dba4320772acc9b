"""Recall on evaluation data planted in documents, and false positives on clean documents."""

import random
import re
import time
import unicodedata
from collections.abc import Iterator

from llmjax.data.cleaning import Document, Rejected, decontamination
from tools import corpora

CLEAN, LEAKS = 20_000, 1_000


def examples(seed: int = 0) -> list[tuple[str, str]]:
    """Paragraphs of mails, and of the declaration of human rights in hundreds of languages."""
    draw = random.Random(seed)
    mails = (record["text"].split("\n\n") for record in corpora.read(corpora.fetch("mails")))
    paragraphs = [part for _, *parts in mails for part in parts if "@" not in part]
    rights = [record["text"] for record in corpora.read(corpora.fetch("udhr"))]
    known: dict[str, str] = {}
    for texts in (paragraphs, rights):
        fit = [text for text in dict.fromkeys(texts) if 15 <= _words(text) <= 200]
        known |= dict.fromkeys(draw.sample(fit, LEAKS // 2), "")
    return [(f"example:{i}", text) for i, text in enumerate(known)]


def _words(text: str) -> int:
    r"""The number of words; `\w` excludes vowel signs, at which it would split words."""
    letters = "".join(char for char in text if unicodedata.category(char)[0] != "M")
    return len(re.findall(r"\w+", letters))


def disguised(text: str, draw: random.Random) -> str:
    """The same words with other capitalization, line breaks and quotation marks."""
    changed = draw.choice([text, text.upper() if text.isascii() else text, text.replace(", ", " ")])
    return re.sub(r"\s+", lambda _: draw.choice([" ", "\n", "  "]), changed.replace('"', "“"))


def judge(seed: int = 0) -> Iterator[dict[str, object]]:
    """For both modes, how many leaks were found and how many clean documents were changed.

    A clean document that shares 13 words with an example does quote it; these are counted apart.
    """
    draw = random.Random(seed)
    known = examples(seed)
    carriers = [record["text"] for record in corpora.read(corpora.fetch("debian"), "en")]
    carriers = draw.sample(carriers, CLEAN + LEAKS)
    quoted = _shingles("\n\n".join(text for _, text in known))
    for mode in ("cut", "reject"):
        settings = decontamination.Decontamination(mode=mode)
        start = time.process_time()
        step = decontamination.step(known, settings)
        found = cut = lost = quoting = 0
        for (name, text), carrier in zip(known, carriers[CLEAN:], strict=True):
            place = draw.randrange(len(carrier))
            leak = disguised(text, draw)
            result = step(Document(f"{carrier[:place]} {leak} {carrier[place:]}"))
            document = result.document if isinstance(result, Rejected) else result
            found += name in document.metadata.get("contamination", ())
            cut += isinstance(result, Rejected) or not _shingles(leak) & _shingles(result.text)
        for carrier in carriers[:CLEAN]:
            document = Document(carrier)
            if step(document) is not document:
                shares = bool(_shingles(carrier) & quoted)
                quoting += shares
                lost += not shares
        yield {
            "mode": mode,
            "leaks": len(known),
            "found": found,
            "removed": cut,
            "clean": CLEAN,
            "quoting": quoting,
            "lost": lost,
            "seconds": time.process_time() - start,
        }


def _shingles(text: str, n: int = 13) -> set[str]:
    words = re.findall(r"[^\W_]+", text.lower())
    return {" ".join(words[i : i + n]) for i in range(len(words) - n + 1)}
