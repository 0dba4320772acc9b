"""Texts cut into lines, paragraphs or sentences, so that the pieces together are the text again."""

import re
from typing import Literal

Unit = Literal["sentence", "line", "paragraph"]

_BOUNDARIES: dict[Unit, re.Pattern[str]] = {
    # Behind an end of sentence with its quotes and what space follows, and behind every line.
    "sentence": re.compile(r"(?<=[.!?…])[\"'”’)\]]*\s+|(?<=[。！？])|\n\s*"),
    "line": re.compile(r"\n"),
    "paragraph": re.compile(r"\n[^\S\n]*\n\s*"),
}


def cut(text: str, unit: Unit) -> list[str]:
    """The pieces of a text, each with the white space behind it.

    Sentences end at a mark before white space, whatever the language, and at the line's end:
    abbreviations end some too early.
    """
    ends = [match.end() for match in _BOUNDARIES[unit].finditer(text)]
    found = [text[start:end] for start, end in zip([0, *ends], [*ends, len(text)], strict=True)]
    return [piece for piece in found if piece]
