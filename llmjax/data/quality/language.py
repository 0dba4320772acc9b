"""Language quality: unknown and misspelt words, punctuation and casing errors, perplexity."""

import collections
import dataclasses
import math
import re
from typing import Any

import numpy as np

from llmjax.data.cleaning.perplexity import Scorer
from llmjax.data.quality.metrics import metric
from llmjax.data.quality.view import Is, View

# Sums of real numbers are kept in units of 2^-32, so that they do not depend on the order.
_UNIT = 1 << 32
# Number of texts scored at a time.
_TOGETHER = 64
_SHOUTED = 3  # consecutive words in capitals that count as an error

# Each alternative begins with the marks that it concerns, so that the engine can skip to them.
_ERRORS = (
    r"[!?][!?]+|\.{4,}|,\s*,|;\s*;"  # repeated marks
    r"|[,.](?<=\w[ \t].)(?=\s|$)"  # space before a mark
    r"|[,;](?<=[^\W\d_].)(?=[^\W\d_])"  # no space after a mark
    r"|[.!?](?<=[a-z][a-z].)(?=[A-Z][a-z])"
)
_PUNCTUATION = re.compile(_ERRORS + r"|[;:!?](?<=\w[ \t].)(?=\s|$)")
_FRENCH = re.compile(_ERRORS)  # French puts a space before ; : ! ?
_BRACKETS = (("(", ")"), ("[", "]"), ("{", "}"))


@dataclasses.dataclass(frozen=True)
class LanguageQuality:
    """How well texts are written; None if there was nothing to count."""

    unknown_words: float | None = metric(
        "Unknown words",
        ".2%",
        "Share of alphabetic words that are not in the word list of their language "
        "(pyspellchecker's; English in both spellings), including names and jargon. Languages "
        "without a list are ignored.",
        "less",
    )
    misspelt_words: float | None = metric(
        "Misspelt words",
        ".2%",
        "The same for words in lower case, which are not names.",
        "less",
    )
    punctuation_errors: float | None = metric(
        "Punctuation errors",
        ".2f",
        "Per 1,000 words: space before a mark or none after it, repeated marks, unpaired brackets "
        "and quotation marks.",
        "less",
    )
    casing_errors: float | None = metric(
        "Casing errors",
        ".2f",
        "Per 1,000 words: sentences that begin in lower case, three or more consecutive words in "
        "capitals, iNVERTED words and a lone i.",
        "less",
    )
    perplexity: float | None = metric(
        "Perplexity",
        ",.1f",
        "Of documents under the given model: the geometric mean, weighted by bytes.",
        "less",
    )


class LanguageCounts:
    """The counts behind `LanguageQuality`."""

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
        """Adds the counts of another instance."""
        other._score()
        self._counts.update(other._counts)

    def result(self) -> LanguageQuality:
        """The metrics."""
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
    """Number of punctuation errors in a text, by rules that do not depend on its content."""
    errors = len((_FRENCH if language == "fr" else _PUNCTUATION).findall(text))
    errors += sum(abs(text.count(left) - text.count(right)) for left, right in _BRACKETS)
    return errors + text.count('"') % 2


def casing_errors(seen: View) -> int:
    """Number of words in the wrong case."""
    lower = (seen.is_word & Is.LOWER) != 0
    ended = (seen.before & Is.END) != 0
    sure = (seen.twice_before & (Is.SHORT | Is.END | Is.BREAK)) == 0
    begun_lower = lower & ended & sure
    miscased = (seen.is_word & Is.MISCASED) != 0
    return int(np.count_nonzero(begun_lower | miscased | _shouted(seen)))


def _shouted(seen: View) -> np.ndarray:
    """Which words [N] are in a run of `_SHOUTED` or more words in capitals."""
    upper = (seen.is_word & Is.UPPER) != 0
    shouted = np.zeros(len(seen.words), bool)
    rows = np.ones(max(len(shouted) - _SHOUTED + 1, 0), bool)
    for shift in range(_SHOUTED):
        rows &= upper[shift : shift + len(rows)]
    for shift in range(_SHOUTED):
        shouted[shift : shift + len(rows)] |= rows
    return shouted
