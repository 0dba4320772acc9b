"""Noise: what hands, scanners and haste do to words."""

import dataclasses
import random
from collections.abc import Callable, Mapping
from typing import ClassVar

from llmjax.data.augmentation.method import Method
from llmjax.data.augmentation.words import Word, words

_ROWS = ("qwertyuiop", "asdfghjkl", "zxcvbnm")
_MARKS = ",.;:!?"
# Shapes that recognisers of printed text take for each other, both ways.
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
    """The keys beside each on a QWERTY keyboard, whose rows stand half a key to the right."""
    near: dict[str, str] = {}
    for i, row in enumerate(_ROWS):
        for j, key in enumerate(row):
            above = _ROWS[i - 1][j : j + 2] if i else ""
            below = _ROWS[i + 1][max(j - 1, 0) : j + 1] if i + 1 < len(_ROWS) else ""
            near[key] = row[max(j - 1, 0) : j] + row[j + 1 : j + 2] + above + below
    return near


_NEAR = _neighbours()

# What one kind can make of a word and the text up to the next: a list, empty if it does not fit.
Change = Callable[[str, str], list[tuple[str, str]]]


def _keyboard(word: str, gap: str) -> list[tuple[str, str]]:
    """A key beside, a key too few, a key twice, two in the wrong order."""
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
    """One shape taken for another."""
    changed = []
    for pair in _CONFUSIONS:
        for read, taken in (pair, pair[::-1]):
            start = word.find(read)
            while start >= 0:
                changed.append((word[:start] + taken + word[start + len(read) :], gap))
                start = word.find(read, start + 1)
    return changed


def _punctuation(word: str, gap: str) -> list[tuple[str, str]]:
    """The mark behind the word left out or taken for another; or a comma where there was none."""
    if gap[:1] and gap[0] in _MARKS:
        others = [mark + gap[1:] for mark in _MARKS if mark != gap[0]]
        return [(word, changed) for changed in (gap[1:], *others)]
    return [(word, "," + gap)] if gap[:1] in (" ", "") else []


def _casing(word: str, gap: str) -> list[tuple[str, str]]:
    """The first letter's case, or that of all letters."""
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
    """Misspells words: slips on a keyboard, a scanner's confusions, marks and capitals.

    Belinkov & Bisk 2018 (arXiv:1711.02173, section 3) make keyboard noise so.

    Attributes:
        rate: the share of words that get one change each.
        kinds: of change, drawn evenly among those that can happen to the word: `keyboard`, `ocr`,
            `punctuation` (at the mark behind it), `casing`.
    """

    rate: float = 0.1
    kinds: tuple[str, ...] = tuple(KINDS)
    name: ClassVar[str] = "noise"

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.kinds or not set(self.kinds) <= set(KINDS):
            raise ValueError(f"Noise.kinds is {self.kinds}: use some of {', '.join(KINDS)}.")

    def __call__(self, text: str, rng: random.Random) -> str:
        """The text with noise; addresses, numbers and names of users stay whole."""
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
