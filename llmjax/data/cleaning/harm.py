"""Harmful content: sentences that a linear model finds offensive, or that contain listed words.

The model is alt-profanity-check's (trained on 200,000 human-labelled comments from Twitter and
Wikipedia). Lists are files with one word or phrase per line; none comes with this package. The
model knows only English, and both methods look at words, not meaning: they also flag quotations,
medical text, and the speech of the people whom such words target.
"""

import collections
import dataclasses
import functools
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar

from llmjax.data.cleaning import contents, offence, pieces, shingles
from llmjax.data.cleaning.document import Document, Rejected


@dataclasses.dataclass(frozen=True)
class HarmfulContent:
    """Removes harmful sentences, and rejects documents that are full of them.

    Dolma (Soldaini et al. 2024, section 5.4) removes sentences from a probability of 0.4; C4
    rejects pages with any listed word: `HarmfulContent(threshold=None, lists=..., most=0)`.

    The metadata `harm` counts sentences by category: the model's is `offensive`, the others are
    those of the lists.

    Attributes:
        threshold: minimum probability of an offensive sentence; None disables the model.
        lists: "category=path" of files with words and phrases.
        remove: whether to remove harmful sentences or only count them.
        most: maximum share of harmful sentences; a document with more is rejected.
    """

    name: ClassVar[str] = "harmful_content"

    threshold: float | None = 0.4
    lists: tuple[str, ...] = ()
    remove: bool = True
    most: float = 0.2

    def __post_init__(self) -> None:
        """Raises ValueError for an invalid field, FileNotFoundError for a missing list."""
        if self.threshold is not None and not 0 <= self.threshold <= 1:
            raise ValueError(f"HarmfulContent.threshold={self.threshold}: must be in [0, 1]")
        if not 0 <= self.most <= 1:
            raise ValueError(f"HarmfulContent.most={self.most}: must be in [0, 1]")
        for item in self.lists:
            _, path = _category(item)
            if not Path(path).is_file():
                raise FileNotFoundError(f"HarmfulContent.lists: there is no file {path!r}")

    def __call__(self, document: Document) -> Document | Rejected:
        """The document without harmful sentences, or its rejection if there are too many."""
        sentences = pieces.cut(document.text, "sentence")
        found = self._categories(sentences)
        harmful = sum(map(bool, found))
        if not harmful:
            return document
        counts = collections.Counter(category for categories in found for category in categories)
        document = document.with_metadata(harm=dict(sorted(counts.items())))
        share = harmful / len(sentences)
        if share > self.most:
            return Rejected(document, "harmful content", share)
        if not self.remove:
            return document
        kept = (sentence for sentence, bad in zip(sentences, found, strict=True) if not bad)
        return document.with_text("".join(kept).rstrip())

    def plain(self) -> dict[str, Any]:
        """The settings as plain values, with digests instead of files."""
        lists = [(category, contents.digest(path)) for category, path in map(_category, self.lists)]
        return dataclasses.asdict(self) | {"lists": lists}

    def _categories(self, sentences: Sequence[str]) -> list[set[str]]:
        """The harmful categories of each sentence."""
        found: list[set[str]] = [set() for _ in sentences]
        if self.threshold is not None and sentences:
            probabilities = offence.probabilities(sentences)
            for categories, probability in zip(found, probabilities, strict=True):
                if probability >= self.threshold:
                    categories.add("offensive")
        for category, path in map(_category, self.lists):
            pattern = load(path)
            for categories, sentence in zip(found, sentences, strict=True):
                if pattern.search(shingles.spaced(sentence)):
                    categories.add(category)
        return found


def _category(item: str) -> tuple[str, str]:
    category, separator, path = item.partition("=")
    if not (category and separator and path):
        raise ValueError(f"HarmfulContent.lists has {item!r}: give category=path")
    return category, path


@functools.lru_cache
def load(path: str) -> re.Pattern[str]:
    """Matches the words and phrases listed in a file, which is read once, in `spaced` text.

    Raises:
        ValueError: the file lists none.
    """
    lines = Path(path).read_text(encoding="utf-8").splitlines()
    phrases = {shingles.spaced(line) for line in lines} - {"  "}
    if not phrases:
        raise ValueError(f"HarmfulContent.lists: {path!r} lists no words")
    # The space after a word is also the one before the next.
    return re.compile("|".join(rf"{re.escape(phrase[:-1])}(?= )" for phrase in sorted(phrases)))
