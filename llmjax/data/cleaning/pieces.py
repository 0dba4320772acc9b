"""Splits texts into lines, paragraphs or sentences whose concatenation is the text."""

import re
from typing import Literal

Unit = Literal["sentence", "line", "paragraph"]

_BOUNDARIES: dict[Unit, re.Pattern[str]] = {
    # After the end of a sentence with its quotes and the following space, and after every line.
    "sentence": re.compile(r"(?<=[.!?…])[\"'”’)\]]*\s+|(?<=[。！？])|\n\s*"),
    "line": re.compile(r"\n"),
    "paragraph": re.compile(r"\n[^\S\n]*\n\s*"),
}


def cut(text: str, unit: Unit) -> list[str]:
    """The pieces of a text, each with the white space after it.

    Sentences end at a mark before white space, in any language, and at the end of a line.
    Abbreviations therefore end some too early.
    """
    ends = [match.end() for match in _BOUNDARIES[unit].finditer(text)]
    found = [text[start:end] for start, end in zip([0, *ends], [*ends, len(text)], strict=True)]
    return [piece for piece in found if piece]
