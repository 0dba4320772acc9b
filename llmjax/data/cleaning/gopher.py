"""Gopher's heuristics for MassiveText: reject documents that are not prose or repeat themselves.

Rae et al. 2021, "Scaling Language Models: Methods, Analysis & Insights from Training Gopher"
(arXiv:2112.11446), appendix A.1.1 and table A1. Decisions are those of datatrove's filters.
"""

import dataclasses
import functools
import math
import re
from collections.abc import Iterator
from typing import ClassVar

from llmjax.data.cleaning import repetition, words
from llmjax.data.cleaning.caches import each
from llmjax.data.cleaning.document import Document, Rejected
from llmjax.data.cleaning.rules import Rule, judge, require_ranges, share

STOP_WORDS = ("the", "be", "to", "of", "and", "that", "have", "with")

_PARAGRAPHS = re.compile(r"\n{2,}")
_LINES = re.compile(r"\n+")


@dataclasses.dataclass(frozen=True)
class GopherQuality:
    """Rejects text that does not look like sentences (Gopher, appendix A.1.1, "Quality filtering").

    Attributes:
        min_words: per document, not counting punctuation marks.
        max_words: per document.
        min_mean_word_length: in characters.
        max_mean_word_length: in characters.
        max_symbol_share: maximum hashes per word, and ellipses per word.
        max_bullet_lines: maximum share of lines that begin with a bullet.
        max_ellipsis_lines: maximum share of lines that end with an ellipsis.
        min_words_with_letter: minimum share of words and marks that contain a letter.
        min_stop_words: minimum number of distinct stop words.
        stop_words: the words. By default the paper's eight for English and spaCy's for other
            languages; languages without a list skip the rule.
    """

    name: ClassVar[str] = "gopher_quality"

    min_words: int = 50
    max_words: int = 100_000
    min_mean_word_length: float = 3.0
    max_mean_word_length: float = 10.0
    max_symbol_share: float = 0.1
    max_bullet_lines: float = 0.9
    max_ellipsis_lines: float = 0.3
    min_words_with_letter: float = 0.8
    min_stop_words: int = 2
    stop_words: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        counts = ("min_words", "max_words", "min_mean_word_length", "max_mean_word_length")
        shares = ("max_bullet_lines", "max_ellipsis_lines", "min_words_with_letter")
        at_least_0 = (*counts, "max_symbol_share", "min_stop_words")
        require_ranges(self, **dict.fromkeys(at_least_0, (0, math.inf)))
        require_ranges(self, **dict.fromkeys(shares, (0, 1)))

    def __call__(self, document: Document) -> Document | Rejected:
        """The document, or the reason why it is not prose."""
        return judge(document, self._rules(document))

    def _rules(self, document: Document) -> Iterator[Rule]:
        tokens = document.words
        lengths = list(filter(None, each(_length, tokens)))
        count = len(lengths)
        yield "too few words", count, count < self.min_words
        yield "too many words", count, count > self.max_words
        mean = share(sum(lengths), count)
        yield "words too short on average", mean, mean < self.min_mean_word_length
        yield "words too long on average", mean, mean > self.max_mean_word_length
        text, lines = document.text, document.lines
        hashes = share(text.count("#"), len(tokens))
        yield "too many hash signs", hashes, hashes > self.max_symbol_share
        ellipses = share(text.count("...") + text.count("…"), len(tokens))
        yield "too many ellipses", ellipses, ellipses > self.max_symbol_share
        bullets = share(sum(line.lstrip().startswith(("•", "-")) for line in lines), len(lines))
        yield "too many bullet lines", bullets, bullets > self.max_bullet_lines
        ends = share(sum(line.rstrip().endswith(("...", "…")) for line in lines), len(lines))
        yield "too many lines ending in an ellipsis", ends, ends > self.max_ellipsis_lines
        letters = share(sum(each(_has_letter, tokens)), len(tokens))
        yield "too few words with letters", letters, letters < self.min_words_with_letter
        stop_words = self._stop_words(document.language)
        if stop_words is not None:
            found = len(stop_words.intersection(tokens))
            yield "too few stop words", found, found < self.min_stop_words

    def _stop_words(self, language: str) -> frozenset[str] | None:
        if self.stop_words:
            return _set(self.stop_words)
        return _set(STOP_WORDS) if language == "en" else words.stop_words(language)


@dataclasses.dataclass(frozen=True)
class GopherRepetition:
    """Rejects repetitive documents (Gopher, appendix A.1.1, "Repetition removal", table A1).

    Attributes:
        max_lines: maximum share of repeated lines.
        max_line_characters: maximum share of characters in them.
        max_paragraphs: maximum share of repeated paragraphs, which blank lines separate.
        max_paragraph_characters: maximum share of characters in them.
        top_ngrams: values of n for the most frequent n-gram.
        max_top_characters: maximum share of characters in it, for each n.
        repeated_ngrams: values of n for repeated n-grams.
        max_repeated_characters: maximum share of characters in them, for each n.
    """

    name: ClassVar[str] = "gopher_repetition"

    max_lines: float = 0.3
    max_line_characters: float = 0.2
    max_paragraphs: float = 0.3
    max_paragraph_characters: float = 0.2
    top_ngrams: tuple[int, ...] = (2, 3, 4)
    max_top_characters: tuple[float, ...] = (0.2, 0.18, 0.16)
    repeated_ngrams: tuple[int, ...] = (5, 6, 7, 8, 9, 10)
    max_repeated_characters: tuple[float, ...] = (0.15, 0.14, 0.13, 0.12, 0.11, 0.10)

    def __post_init__(self) -> None:
        for sizes, shares in (
            ("top_ngrams", "max_top_characters"),
            ("repeated_ngrams", "max_repeated_characters"),
        ):
            if len(getattr(self, sizes)) != len(getattr(self, shares)):
                raise ValueError(f"{self.name}.{shares}: give one share for each of {sizes}")
            require_ranges(self, **{sizes: (1, math.inf), shares: (0, math.inf)})
        parts = ("max_lines", "max_line_characters", "max_paragraphs", "max_paragraph_characters")
        require_ranges(self, **dict.fromkeys(parts, (0, 1)))

    def __call__(self, document: Document) -> Document | Rejected:
        """The document, or what it repeats."""
        return judge(document, self._rules(document))

    def _rules(self, document: Document) -> Iterator[Rule]:
        text = document.text
        yield "empty text", 0.0, not text
        paragraphs = _PARAGRAPHS.split(text.strip())
        count, characters = repetition.repeats(paragraphs)
        portion = count / len(paragraphs)
        yield "too many repeated paragraphs", portion, portion > self.max_paragraphs
        portion = characters / len(text)
        yield (
            "too much text in repeated paragraphs",
            portion,
            portion > self.max_paragraph_characters,
        )
        lines = _LINES.split(text)
        count, characters = repetition.repeats(lines)
        portion = count / len(lines)
        yield "too many repeated lines", portion, portion > self.max_lines
        portion = characters / len(text)
        yield "too much text in repeated lines", portion, portion > self.max_line_characters
        for n, most in zip(self.top_ngrams, self.max_top_characters, strict=True):
            portion = repetition.top_ngram_characters(document.words, n) / len(text)
            yield f"too much text in one {n}-gram", portion, portion > most
        for n, most in zip(self.repeated_ngrams, self.max_repeated_characters, strict=True):
            portion = repetition.repeated_ngram_characters(document.words, n) / len(text)
            yield f"too much text in repeated {n}-grams", portion, portion > most


@functools.lru_cache
def _set(stop_words: tuple[str, ...]) -> frozenset[str]:
    return frozenset(stop_words)


@functools.lru_cache(1 << 17)
def _length(word: str) -> int:
    """The characters of a word; 0 for punctuation."""
    return 0 if words.punctuation().issuperset(word) else len(word)


@functools.lru_cache(1 << 17)
def _has_letter(word: str) -> bool:
    return any(map(str.isalpha, word))
