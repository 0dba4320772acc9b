"""Reads a thesaurus in the MyThes format of office suites.

The first line names the encoding. Entries follow: `word|N`, and N lines of senses, each
`(part of speech)|synonym|synonym|…`. Related words that are not synonyms are marked in parentheses:
`(generic term)`, `(antonym)`.
"""

import codecs
import dataclasses
import functools
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from llmjax.data.augmentation.wordnet import WordNet

# The path of WordNet in this format in Debian's package mythes-en-us.
ENGLISH = "/usr/share/mythes/th_en_US_v2.dat"

_PARTS: Mapping[str, str] = {"noun": "NOUN", "verb": "VERB", "adj": "ADJ", "adv": "ADV"}


@dataclasses.dataclass(frozen=True)
class Meaning:
    """A sense of a word.

    Attributes:
        part: its part of speech: `NOUN`, `VERB`, `ADJ` or `ADV`; "" if none is given.
        synonyms: synonyms as in the file.
        related: other words with their relation: `("vehicle", "generic term")`.
    """

    part: str
    synonyms: tuple[str, ...]
    related: tuple[tuple[str, str], ...] = ()


class Thesaurus:
    """Maps words to their senses, in the order of the file (usually most common first).

    Args:
        data: content of the file.
        name: the file's name, for error messages.

    Raises:
        ValueError: the file is malformed; the message names the line.
    """

    def __init__(self, data: bytes, name: str = "thesaurus") -> None:
        head, *self._lines = data.splitlines() or [b""]
        try:
            self._encoding = codecs.lookup(head.decode("ascii").strip()).name
        except (LookupError, UnicodeDecodeError) as error:
            raise ValueError(
                f"{name}: its first line does not name an encoding ({error}). Give a thesaurus in "
                "the format of MyThes, such as th_en_US_v2.dat."
            ) from error
        self._places: dict[bytes, range] = {}
        number = 0
        while number < len(self._lines):
            word, bar, count = self._lines[number].rpartition(b"|")
            meanings = range(number + 1, number + 1 + int(count)) if count.isdigit() else None
            if not bar or meanings is None or meanings.stop > len(self._lines):
                raise ValueError(f"{name}, line {number + 2}: expected WORD|NUMBER_OF_MEANINGS.")
            self._places.setdefault(word, meanings)
            number = meanings.stop

    def __len__(self) -> int:
        return len(self._places)

    def __contains__(self, word: str) -> bool:
        return word.encode(self._encoding, "replace") in self._places

    def __getitem__(self, word: str) -> tuple[Meaning, ...]:
        places = self._places.get(word.encode(self._encoding, "replace"), range(0))
        return tuple(self._meaning(self._lines[place]) for place in places)

    def _meaning(self, line: bytes) -> Meaning:
        part, *others = line.decode(self._encoding, "replace").split("|")
        synonyms, related = [], []
        for other in filter(None, others):
            word, bracket, relation = other.rstrip(")").rpartition(" (")
            if bracket:
                related.append((word, relation))
            else:
                synonyms.append(other)
        part = _PARTS.get(part.strip("()- "), "")
        return Meaning(part, tuple(dict.fromkeys(synonyms)), tuple(related))


@functools.lru_cache(maxsize=4)
def load(path: str = ENGLISH) -> "Thesaurus | WordNet":
    """Loads a thesaurus once: a MyThes file, or the folder of WordNet's database.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file is malformed.
    """
    if Path(path).is_dir():
        from llmjax.data.augmentation.wordnet import WordNet  # which imports this module

        return WordNet(path)
    if not Path(path).is_file():
        raise FileNotFoundError(
            f"no thesaurus at {path!r}: apt-get install mythes-en-us, or name another file in the "
            "format of MyThes, or the folder of WordNet's database."
        )
    return Thesaurus(Path(path).read_bytes(), path)
