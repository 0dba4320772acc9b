"""Language quality: unknown and misspelt words, errors of punctuation and casing, perplexity."""

import collections
import dataclasses
import math
import re
from collections.abc import Callable

import numpy as np

from llmjax.data.quality.metrics import metric
from llmjax.data.quality.view import Is, View

# Nats and tokens of a text, from whatever model: their sums make the perplexity.
Scorer = Callable[[str], tuple[float, int]]

# Sums of numbers that are not whole are kept in units of 2^-32, so that no order changes them.
_UNIT = 1 << 32
_SHOUTED = 3  # as many words in capitals, one behind the other

# Each alternative begins with the marks it is about, which the engine can skip to.
_ERRORS = (
    r"[!?][!?]+|\.{4,}|,\s*,|;\s*;"  # repeated
    r"|[,.](?<=\w[ \t].)(?=\s|$)"  # space in front
    r"|[,;](?<=[^\W\d_].)(?=[^\W\d_])"  # none behind
    r"|[.!?](?<=[a-z][a-z].)(?=[A-Z][a-z])"
)
_PUNCTUATION = re.compile(_ERRORS + r"|[;:!?](?<=\w[ \t].)(?=\s|$)")
_FRENCH = re.compile(_ERRORS)  # which has a space in front of these
_BRACKETS = (("(", ")"), ("[", "]"), ("{", "}"))


@dataclasses.dataclass(frozen=True)
class LanguageQuality:
    """How well texts are written; None where nothing could be counted."""

    unknown_words: float | None = metric(
        "Unknown words",
        ".2%",
        "Share of the words of letters that the list of their language lacks (pyspellchecker's; "
        "English in both spellings), names and jargon included. Languages without a list are "
        "left out.",
        "less",
    )
    misspelt_words: float | None = metric(
        "Misspelt words",
        ".2%",
        "The same among words all in lower case, which are no names.",
        "less",
    )
    punctuation_errors: float | None = metric(
        "Punctuation errors",
        ".2f",
        "Space in front of a mark or none behind it, marks repeated, brackets and quotation marks "
        "without their other half; per 1,000 words.",
        "less",
    )
    casing_errors: float | None = metric(
        "Casing errors",
        ".2f",
        "Sentences that begin in lower case, three or more words in capitals in a row, iNVERTED "
        "words and a lone i; per 1,000 words.",
        "less",
    )
    perplexity: float | None = metric(
        "Perplexity",
        ",.1f",
        "Of the given model: exp of the mean nats per token, all documents together.",
        "less",
    )


class LanguageCounts:
    """What `LanguageQuality` is worked out from."""

    def __init__(self, scorer: Scorer | None = None) -> None:
        self._scorer = scorer
        self._counts: collections.Counter[str] = collections.Counter()

    def add(self, seen: View) -> None:
        """Counts a document."""
        text, language = seen.document.text, seen.document.language
        self._counts.update(
            words=len(seen.words),
            listed=seen.count(Is.LISTED),
            unknown=seen.count(Is.UNKNOWN),
            lower=seen.count(Is.LISTED | Is.LOWER),
            misspelt=seen.count(Is.UNKNOWN | Is.LOWER),
            punctuation=punctuation_errors(text, language),
            casing=casing_errors(seen),
        )
        if self._scorer is not None:
            nats, tokens = self._scorer(text)
            if math.isfinite(nats):
                self._counts.update(nats=round(nats * _UNIT), tokens=tokens)

    def merge(self, other: "LanguageCounts") -> None:
        """Adds another's counts."""
        self._counts.update(other._counts)

    def result(self) -> LanguageQuality:
        """The numbers."""
        count = self._counts
        words, tokens = count["words"], count["tokens"]
        return LanguageQuality(
            unknown_words=count["unknown"] / count["listed"] if count["listed"] else None,
            misspelt_words=count["misspelt"] / count["lower"] if count["lower"] else None,
            punctuation_errors=1000 * count["punctuation"] / words if words else None,
            casing_errors=1000 * count["casing"] / words if words else None,
            perplexity=_exp(count["nats"] / _UNIT / tokens) if tokens else None,
        )


def punctuation_errors(text: str, language: str = "en") -> int:
    """How many errors of punctuation a text has, by rules that hold whatever the sentence says."""
    errors = len((_FRENCH if language == "fr" else _PUNCTUATION).findall(text))
    errors += sum(abs(text.count(left) - text.count(right)) for left, right in _BRACKETS)
    return errors + text.count('"') % 2


def casing_errors(seen: View) -> int:
    """How many words of a document are in the wrong case."""
    lower = (seen.is_word & Is.LOWER) != 0
    ended = (seen.before & Is.END) != 0
    sure = (seen.twice_before & (Is.SHORT | Is.END | Is.BREAK)) == 0
    begun_lower = lower & ended & sure
    miscased = (seen.is_word & Is.MISCASED) != 0
    return int(np.count_nonzero(begun_lower | miscased | _shouted(seen)))


def _shouted(seen: View) -> np.ndarray:
    """Which words [N] stand in a row of `_SHOUTED` or more in capitals."""
    upper = (seen.is_word & Is.UPPER) != 0
    shouted = np.zeros(len(seen.words), bool)
    rows = np.ones(max(len(shouted) - _SHOUTED + 1, 0), bool)
    for shift in range(_SHOUTED):
        rows &= upper[shift : shift + len(rows)]
    for shift in range(_SHOUTED):
        shouted[shift : shift + len(rows)] |= rows
    return shouted


def _exp(nats: float) -> float | None:
    return math.exp(nats) if nats < 700 else None
