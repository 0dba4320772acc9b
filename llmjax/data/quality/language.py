"""Language quality: unknown and misspelt words, errors of punctuation and casing, perplexity."""

import collections
import dataclasses
import math
import re
from typing import Any

import numpy as np

from llmjax.data.cleaning.perplexity import Scorer
from llmjax.data.quality.metrics import metric
from llmjax.data.quality.view import Is, View

# Sums of numbers that are not whole are kept in units of 2^-32, so that no order changes them.
_UNIT = 1 << 32
# Texts are scored so many at a time.
_TOGETHER = 64
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
        "Of documents under the given model: the geometric mean, weighted by their bytes.",
        "less",
    )


class LanguageCounts:
    """What `LanguageQuality` is worked out from."""

    def __init__(self, scorer: Scorer | None = None) -> None:
        self._scorer = scorer
        self._counts: collections.Counter[str] = collections.Counter()
        self._unscored: list[str] = []

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
            self._unscored.append(text)
            if len(self._unscored) == _TOGETHER:
                self._score()

    def merge(self, other: "LanguageCounts") -> None:
        """Adds another's counts."""
        other._score()
        self._counts.update(other._counts)

    def result(self) -> LanguageQuality:
        """The numbers."""
        self._score()
        count = self._counts
        words, scored = count["words"], count["scored"]
        return LanguageQuality(
            unknown_words=count["unknown"] / count["listed"] if count["listed"] else None,
            misspelt_words=count["misspelt"] / count["lower"] if count["lower"] else None,
            punctuation_errors=1000 * count["punctuation"] / words if words else None,
            casing_errors=1000 * count["casing"] / words if words else None,
            perplexity=math.exp(count["nats"] / _UNIT / scored) if scored else None,
        )

    def _score(self) -> None:
        if self._scorer is None or not self._unscored:
            return
        for text, found in zip(self._unscored, self._scorer(self._unscored), strict=True):
            if math.isfinite(found) and found > 0:
                size = len(text.encode("utf-8", "surrogatepass"))
                self._counts.update(nats=round(math.log(found) * size * _UNIT), scored=size)
        self._unscored = []

    def __getstate__(self) -> dict[str, Any]:
        self._score()
        return self.__dict__


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
