"""FineWeb's own heuristics: reject documents that are lists, menus or boilerplate.

Penedo et al. 2024, "The FineWeb Datasets: Decanting the Web for the Finest Text Data at Scale"
(arXiv:2406.17557), section 3.6. Decisions are those of datatrove's filter.
"""

import dataclasses
import math
from collections.abc import Iterator
from typing import ClassVar

from llmjax.data.cleaning import repetition, words
from llmjax.data.cleaning.document import Document, Rejected
from llmjax.data.cleaning.rules import Rule, judge, require_ranges, share


@dataclasses.dataclass(frozen=True)
class FineWebQuality:
    """Rejects texts whose lines are not those of prose (FineWeb, section 3.6).

    Attributes:
        min_punctuated_lines: minimum share of lines that end like sentences.
        max_short_lines: maximum share of short lines.
        short_line: maximum characters of a short line.
        max_repeated_characters: maximum share of characters in repeated lines: 0.1 in section 3.6
            of the paper, 0.01 in the code that made the dataset.
        max_breaks: maximum line breaks per word.
    """

    name: ClassVar[str] = "fineweb_quality"

    min_punctuated_lines: float = 0.12
    max_short_lines: float = 0.67
    short_line: int = 30
    max_repeated_characters: float = 0.01
    max_breaks: float = 0.3

    def __post_init__(self) -> None:
        shares = ("min_punctuated_lines", "max_short_lines", "max_repeated_characters")
        require_ranges(self, **dict.fromkeys(shares, (0, 1)))
        require_ranges(self, short_line=(0, math.inf), max_breaks=(0, math.inf))

    def __call__(self, document: Document) -> Document | Rejected:
        """The document, or the fault of its lines."""
        return judge(document, self._rules(document))

    def _rules(self, document: Document) -> Iterator[Rule]:
        text = document.text
        lines = [line for line in text.split("\n") if line and not line.isspace()]
        yield "empty text", 0.0, not lines
        ends = words.sentence_ends()
        punctuated = sum(line[-1] in ends for line in lines) / len(lines)
        yield (
            "too few lines ending in punctuation",
            punctuated,
            punctuated < self.min_punctuated_lines,
        )
        short = sum(len(line) <= self.short_line for line in lines) / len(lines)
        yield "too many short lines", short, short > self.max_short_lines
        breaks = text.count("\n")
        repeated = repetition.repeats(lines)[1] / (len(text) - breaks)
        yield "too much text in repeated lines", repeated, repeated > self.max_repeated_characters
        broken = share(breaks, len(document.words))
        yield "too many line breaks", broken, broken > self.max_breaks
