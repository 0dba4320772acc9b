"""Replaces words by synonyms."""

import dataclasses
import random
from collections.abc import Sequence
from typing import ClassVar

from llmjax.data.augmentation import grammar, thesaurus
from llmjax.data.augmentation.lexicon import PARTICLES
from llmjax.data.augmentation.method import Method
from llmjax.data.augmentation.words import Word, exchanged, spelt_like, words

_VOWELS = "aeiou"


@dataclasses.dataclass(frozen=True)
class SynonymReplacement(Method):
    """Replaces words by synonyms (Zhang, Zhao & LeCun 2015, section 2.4; EDA, Wei & Zou 2019).

    A word is replaced only if its part of speech is certain (`grammar.parts_of_speech`), by a
    single-word synonym for that part of speech in the same form and case: "watched" is a verb in
    the past tense, and so is its replacement. After "a" or "an" the first letter stays a consonant
    or a vowel. Names, closed-class words, addresses and numbers stay unchanged.

    Attributes:
        rate: share of the words with a synonym to replace.
        path: the thesaurus: a MyThes file or the folder of WordNet's database; by default that
            of Debian's mythes-en-us.
        senses: number of senses of a part of speech to use; WordNet lists common senses first.
        ambiguity: words with more senses as their part of speech stay unchanged; "make" has 49.
        mutual: whether the word must be among the synonyms of its synonym in these senses. This
            avoids rare senses (a "flick" is also a movement).
    """

    rate: float = 0.5
    path: str = thesaurus.ENGLISH
    senses: int = 1
    ambiguity: int = 8
    mutual: bool = True
    name: ClassVar[str] = "synonyms"

    def __post_init__(self) -> None:
        super().__post_init__()
        for field in ("senses", "ambiguity"):
            if getattr(self, field) < 1:
                value = getattr(self, field)
                raise ValueError(f"SynonymReplacement.{field} is {value}: use 1 or more.")

    def __call__(self, text: str, rng: random.Random) -> str:
        """The text with some words replaced and everything else unchanged."""
        found = words(text)
        parts = grammar.parts_of_speech(found)
        fitting = {
            i: choices
            for i, (word, part) in enumerate(zip(found, parts, strict=True))
            if part and not self._more(found, i, part)
            if (choices := self._fitting(word, part, found[i - 1] if i else None))
        }
        new = {
            i: spelt_like(found[i].text, rng.choice(fitting[i]))
            for i in self.drawn(list(fitting), rng)
        }
        return exchanged(text, found, new)

    def synonyms(self, lemma: str, part: str) -> list[str]:
        """Single-word synonyms of a lemma."""
        return [
            other
            for other in self._same(lemma, part)
            if other.isalpha() and other.islower() and other != lemma
            if not self.mutual or lemma in self._same(other, part)
        ]

    def _same(self, lemma: str, part: str) -> list[str]:
        meanings = [m for m in thesaurus.load(self.path)[lemma] if m.part == part]
        if len(meanings) > self.ambiguity:
            return []
        return [other for meaning in meanings[: self.senses] for other in meaning.synonyms]

    def _more(self, found: Sequence[Word], i: int, part: str) -> bool:
        """Whether it is more than a form of its lemma: "go down", or a participial adjective."""
        behind = found[i + 1] if i + 1 < len(found) else None
        if part == "VERB" and behind and behind.gap == " " and behind.text.lower() in PARTICLES:
            return True
        lower = found[i].text.lower()
        if lower == grammar.lemma_of(lower, part):
            return False
        return any(meaning.part != part for meaning in thesaurus.load(self.path)[lower])

    def _fitting(self, word: Word, part: str, before: Word | None) -> list[str]:
        """Synonyms in the word's form that fit in its place."""
        others = self.synonyms(grammar.lemma_of(word.text, part), part)
        shapes = (grammar.inflected_like(word.text, part, other) for other in others)
        article = before is not None and before.text.lower() in ("a", "an")
        vowel = word.text[0].lower() in _VOWELS
        return [
            shape
            for shape in dict.fromkeys(shapes)
            if shape and shape != word.text.lower()
            if not article or (shape[0] in _VOWELS) == vowel
        ]
