"""Noise: typing errors, OCR errors, and errors of punctuation and case."""

import dataclasses
import random
from collections.abc import Callable, Mapping
from typing import ClassVar

from llmjax.data.augmentation.method import Method
from llmjax.data.augmentation.words import Word, words

_ROWS = ("qwertyuiop", "asdfghjkl", "zxcvbnm")
_MARKS = ",.;:!?"
# Shapes that OCR confuses, in both directions.
_CONFUSIONS = (
    ("rn", "m"),
    ("cl", "d"),
    ("vv", "w"),
    ("li", "h"),
    ("ii", "n"),
    ("e", "c"),
    ("l", "1"),
    ("i", "l"),
    ("o", "0"),
    ("s", "5"),
    ("g", "9"),
    ("b", "6"),
    ("f", "t"),
    ("u", "v"),
    ("S", "5"),
    ("B", "8"),
    ("O", "0"),
    ("I", "l"),
    ("Z", "2"),
)


def _neighbours() -> dict[str, str]:
    """The adjacent keys of each key on a QWERTY keyboard with staggered rows."""
    near: dict[str, str] = {}
    for i, row in enumerate(_ROWS):
        for j, key in enumerate(row):
            above = _ROWS[i - 1][j : j + 2] if i else ""
            below = _ROWS[i + 1][max(j - 1, 0) : j + 1] if i + 1 < len(_ROWS) else ""
            near[key] = row[max(j - 1, 0) : j] + row[j + 1 : j + 2] + above + below
    return near


_NEAR = _neighbours()

# Maps a word and the gap after it to all changes of one kind; empty if none applies.
Change = Callable[[str, str], list[tuple[str, str]]]


def _keyboard(word: str, gap: str) -> list[tuple[str, str]]:
    """An adjacent key, a missing key, a doubled key, or two keys swapped."""
    changed = []
    for i, letter in enumerate(word):
        head, tail = word[:i], word[i + 1 :]
        for key in _NEAR.get(letter.lower(), ""):
            changed.append(head + (key.upper() if letter.isupper() else key) + tail)
        changed.append(head + letter + letter + tail)
        if len(word) > 1:
            changed.append(head + tail)
        if tail and tail[0] != letter:
            changed.append(head + tail[0] + letter + tail[1:])
    return [(spelt, gap) for spelt in changed]


def _ocr(word: str, gap: str) -> list[tuple[str, str]]:
    """A shape confused with another."""
    changed = []
    for pair in _CONFUSIONS:
        for read, taken in (pair, pair[::-1]):
            start = word.find(read)
            while start >= 0:
                changed.append((word[:start] + taken + word[start + len(read) :], gap))
                start = word.find(read, start + 1)
    return changed


def _punctuation(word: str, gap: str) -> list[tuple[str, str]]:
    """The mark after the word omitted or replaced, or a comma inserted."""
    if gap[:1] and gap[0] in _MARKS:
        others = [mark + gap[1:] for mark in _MARKS if mark != gap[0]]
        return [(word, changed) for changed in (gap[1:], *others)]
    return [(word, "," + gap)] if gap[:1] in (" ", "") else []


def _casing(word: str, gap: str) -> list[tuple[str, str]]:
    """The case of the first letter or of all letters changed."""
    forms = (word.lower(), word.upper(), word[:1].swapcase() + word[1:])
    return [(form, gap) for form in dict.fromkeys(forms) if form != word]


KINDS: Mapping[str, Change] = {
    "keyboard": _keyboard,
    "ocr": _ocr,
    "punctuation": _punctuation,
    "casing": _casing,
}


@dataclasses.dataclass(frozen=True)
class Noise(Method):
    """Misspells words: typing errors, OCR errors, punctuation and case.

    The keyboard noise follows Belinkov & Bisk 2018 (arXiv:1711.02173, section 3).

    Attributes:
        rate: share of words to change, each once.
        kinds: kinds of change, drawn uniformly from those that fit the word: `keyboard`, `ocr`,
            `punctuation` (the mark after it), `casing`.
    """

    rate: float = 0.1
    kinds: tuple[str, ...] = tuple(KINDS)
    name: ClassVar[str] = "noise"

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.kinds or not set(self.kinds) <= set(KINDS):
            raise ValueError(f"Noise.kinds is {self.kinds}: use some of {', '.join(KINDS)}.")

    def __call__(self, text: str, rng: random.Random) -> str:
        """The text with noise; addresses, numbers and user names stay unchanged."""
        found = words(text)
        hit = set(self.drawn(range(len(found)), rng))
        pieces = [found[0].gap if found else text]
        for i, word in enumerate(found):
            end = found[i + 1].start if i + 1 < len(found) else len(text)
            gap = text[word.end : end]
            pieces += self._changed(word, gap, rng) if i in hit else (word.text, gap)
        return "".join(pieces)

    def _changed(self, word: Word, gap: str, rng: random.Random) -> tuple[str, str]:
        fitting = [made for kind in self.kinds if (made := KINDS[kind](word.text, gap))]
        return rng.choice(rng.choice(fitting)) if fitting else (word.text, gap)
