"""The words of a text with their positions, and replacement of some of them."""

import dataclasses
import re
from collections.abc import Mapping, Sequence

# Addresses, user and file names, hashtags, placeholders, and anything with a digit depend on their
# exact spelling; they are matched first and skipped.
_KEPT = (
    r"\w+://\S+|\S+@\S+|\w+(?:\.\w+)+(?:/\S*)?|[@#]\w+|<[^<>\s]*>|\[[A-Z_]+\]"
    r"|\w*[\d_]\w*(?:[.,:/'’-]\w+)*"
)
_WORD = r"[^\W\d_]+(?:['’-][^\W\d_]+)*"
_TOKEN = re.compile(rf"(?:{_KEPT})|(?P<word>{_WORD})")
_ENDS = re.compile(r"[.!?…:]\W*$|\n\s*$")


@dataclasses.dataclass(frozen=True)
class Word:
    """A word, and the gap before it.

    Attributes:
        text: its spelling.
        start: its offset in the text.
        gap: the text between the previous word (or the beginning) and this one.
    """

    text: str
    start: int
    gap: str

    @property
    def end(self) -> int:
        """The offset after the word."""
        return self.start + len(self.text)

    @property
    def begins(self) -> bool:
        """Whether it begins a sentence, judging by the marks before it."""
        return self.start == len(self.gap) or _ENDS.search(self.gap) is not None


def words(text: str) -> list[Word]:
    """The words in order: letters, with inner hyphens and apostrophes."""
    found, end = [], 0
    for match in _TOKEN.finditer(text):
        if match["word"]:
            found.append(Word(match["word"], match.start(), text[end : match.start()]))
            end = match.end()
    return found


def exchanged(text: str, found: Sequence[Word], new: Mapping[int, str]) -> str:
    """The text with the words at some indices replaced."""
    pieces, end = [], 0
    for i in sorted(new):
        pieces += [text[end : found[i].start], new[i]]
        end = found[i].end
    return "".join([*pieces, text[end:]])


def spelt_like(word: str, new: str) -> str:
    """A new word in the case of the word that it replaces: word, Word or WORD."""
    if len(word) > 1 and word.isupper():
        return new.upper()
    return new[:1].upper() + new[1:] if word[:1].isupper() else new
