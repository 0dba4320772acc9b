"""The words of a text, where they stand, and texts with some of them exchanged."""

import dataclasses
import re
from collections.abc import Mapping, Sequence

# Addresses, names of users and files, topics, placeholders, and whatever has a digit say what they
# say by being spelt so; they are matched first, and passed over.
_KEPT = (
    r"\w+://\S+|\S+@\S+|\w+(?:\.\w+)+(?:/\S*)?|[@#]\w+|<[^<>\s]*>|\[[A-Z_]+\]"
    r"|\w*[\d_]\w*(?:[.,:/'’-]\w+)*"
)
_WORD = r"[^\W\d_]+(?:['’-][^\W\d_]+)*"
_TOKEN = re.compile(rf"(?:{_KEPT})|(?P<word>{_WORD})")
_ENDS = re.compile(r"[.!?…:]\W*$|\n\s*$")


@dataclasses.dataclass(frozen=True)
class Word:
    """A word, and what stands between it and the one in front.

    Attributes:
        text: as it is spelt.
        start: where in the text it begins.
        gap: what is between it and the end of the word before, or the beginning of the text.
    """

    text: str
    start: int
    gap: str

    @property
    def end(self) -> int:
        """Where the text goes on behind it."""
        return self.start + len(self.text)

    @property
    def begins(self) -> bool:
        """Whether a sentence begins with it, as far as marks tell."""
        return self.start == len(self.gap) or _ENDS.search(self.gap) is not None


def words(text: str) -> list[Word]:
    """The words in order: letters, with hyphens and apostrophes within."""
    found, end = [], 0
    for match in _TOKEN.finditer(text):
        if match["word"]:
            found.append(Word(match["word"], match.start(), text[end : match.start()]))
            end = match.end()
    return found


def exchanged(text: str, found: Sequence[Word], new: Mapping[int, str]) -> str:
    """The text with the words of some numbers exchanged, and nothing else."""
    pieces, end = [], 0
    for i in sorted(new):
        pieces += [text[end : found[i].start], new[i]]
        end = found[i].end
    return "".join([*pieces, text[end:]])


def spelt_like(word: str, new: str) -> str:
    """A new word in the case of the one that it stands for: word, Word or WORD."""
    if len(word) > 1 and word.isupper():
        return new.upper()
    return new[:1].upper() + new[1:] if word[:1].isupper() else new
