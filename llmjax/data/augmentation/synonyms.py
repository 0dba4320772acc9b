"""Words exchanged for others that mean the same."""

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
    """Exchanges words for synonyms (Zhang, Zhao & LeCun 2015, section 2.4; EDA, Wei & Zou 2019).

    A word is exchanged only where its part of speech can be told (`grammar.parts_of_speech`), for
    one word that means the same as that part of speech, in the same form and case: "watched" is a
    verb in the past, so is what replaces it. After "a" or "an" the first letter stays a consonant
    or a vowel. Names, words of closed classes, addresses and numbers stay.

    Attributes:
        rate: the share of the words that have a synonym that are exchanged.
        path: the thesaurus, a file in the format of MyThes or the folder of WordNet's database; by
            default that of Debian's mythes-en-us.
        senses: how many meanings of a part of speech are used; WordNet has the usual ones first.
        ambiguity: words with more meanings than this as their part of speech stay; "make" has 49.
        mutual: whether the word must be in these meanings of the synonym, too. Rare words (a
            "flick" is also a movement) drop out.
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
        """The text with other words, and all between them as it was."""
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
        """Single words that mean the same as a dictionary form."""
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
        """Whether it is more than its lemma's form: "go down", or a participle that describes."""
        behind = found[i + 1] if i + 1 < len(found) else None
        if part == "VERB" and behind and behind.gap == " " and behind.text.lower() in PARTICLES:
            return True
        lower = found[i].text.lower()
        if lower == grammar.lemma_of(lower, part):
            return False
        return any(meaning.part != part for meaning in thesaurus.load(self.path)[lower])

    def _fitting(self, word: Word, part: str, before: Word | None) -> list[str]:
        """The synonyms in the word's form that can stand in its place."""
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
