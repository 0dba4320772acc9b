"""C4's heuristics: remove lines that are not sentences, and documents that are not prose.

Raffel et al. 2020, "Exploring the Limits of Transfer Learning with a Unified Text-to-Text
Transformer" (JMLR 21:140), section 2.2, plus what its published code does beyond that. Decisions
and texts are those of datatrove's filter.
"""

import dataclasses
import re
from typing import ClassVar

from llmjax.data.cleaning import words
from llmjax.data.cleaning.document import Document, Rejected
from llmjax.data.cleaning.rules import require_ranges

POLICY_PHRASES = (
    "terms of use",
    "privacy policy",
    "cookie policy",
    "uses cookies",
    "use of cookies",
    "use cookies",
)

_CITATION = re.compile(r"\[\d*]|\[edit]|\[citation needed]")
_LINE_ENDS = (".", "?", "!", '"', "'")


@dataclasses.dataclass(frozen=True)
class C4Quality:
    """Keeps lines that are sentences, and documents with enough of them (C4, section 2.2).

    FineWeb, whose recipe uses this step, keeps lines without a final mark (`terminal_marks=False`).

    Attributes:
        terminal_marks: drop lines that do not end with one of . ? ! and quotes, or that end with an
            ellipsis.
        min_line_words: drop lines with fewer words, split at white space.
        max_word_length: drop lines with a longer word.
        javascript: drop lines that mention Javascript.
        policies: drop lines with one of `POLICY_PHRASES`.
        citations: remove Wikipedia's marks, such as "[2]" and "[edit]", from lines.
        braces: reject documents with a curly bracket.
        lorem_ipsum: reject documents with placeholder text.
        min_sentences: reject documents with fewer sentences left.
        paragraphs: keep an empty line between lines that had some between them; C4 drops them all.
            FineWeb's limit of line breaks, if that step follows, counts these too.
    """

    name: ClassVar[str] = "c4_quality"

    terminal_marks: bool = True
    min_line_words: int = 3
    max_word_length: int = 1000
    javascript: bool = True
    policies: bool = True
    citations: bool = True
    braces: bool = True
    lorem_ipsum: bool = True
    min_sentences: int = 5
    paragraphs: bool = False

    def __post_init__(self) -> None:
        at_least_0 = ("min_line_words", "max_word_length", "min_sentences")
        require_ranges(self, **dict.fromkeys(at_least_0, (0, float("inf"))))

    def __call__(self, document: Document) -> Document | Rejected:
        """The document with the kept lines, or the reason for its rejection."""
        kept: list[str] = []
        beginnings: set[int] = set()  # of paragraphs, among the kept lines
        for line in map(str.strip, document.lines):
            if not line:
                beginnings.add(len(kept))
            cleaned = self._cleaned(line)
            if cleaned is None or (self.paragraphs and not cleaned.strip()):  # citations alone
                continue
            lower = cleaned.lower()
            if self.lorem_ipsum and "lorem ipsum" in lower:
                return Rejected(document, "placeholder text")
            if self.javascript and "javascript" in lower:
                continue
            if self.braces and "{" in cleaned:
                return Rejected(document, "curly bracket")
            if not (self.policies and any(phrase in lower for phrase in POLICY_PHRASES)):
                kept.append(cleaned)
        sentences = 0
        for line in kept:
            if sentences >= self.min_sentences:
                break
            sentences += words.count_sentences(line, document.language)
        if sentences < self.min_sentences:
            return Rejected(document, "too few sentences", sentences)
        if self.paragraphs:
            kept = [f"\n{line}" if i in beginnings else line for i, line in enumerate(kept)]
        return document.with_text("\n".join(kept).strip())

    def _cleaned(self, line: str) -> str | None:
        """A line without citations; None if the line is dropped."""
        parts = line.split()
        if len(line) > self.max_word_length and max(map(len, parts)) > self.max_word_length:
            return None
        if self.citations and "[" in line:
            line = _CITATION.sub("", line)
        if self.terminal_marks and (not line.endswith(_LINE_ENDS) or line.endswith("...")):
            return None
        return line if len(parts) >= self.min_line_words else None
