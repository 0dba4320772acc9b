"""A thesaurus in the format of MyThes, which office suites read.

Its first line names the encoding. Then come entries: `word|N`, and N lines of meanings, each
`(part of speech)|synonym|synonym|…`. Words that are no synonyms say so in brackets behind them:
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

# Where Debian's package mythes-en-us puts WordNet in this format.
ENGLISH = "/usr/share/mythes/th_en_US_v2.dat"

_PARTS: Mapping[str, str] = {"noun": "NOUN", "verb": "VERB", "adj": "ADJ", "adv": "ADV"}


@dataclasses.dataclass(frozen=True)
class Meaning:
    """One sense of a word.

    Attributes:
        part: its part of speech: `NOUN`, `VERB`, `ADJ` or `ADV`; "" where none is named.
        synonyms: words that mean the same, as the file has them.
        related: other words, and how they are related: `("vehicle", "generic term")`.
    """

    part: str
    synonyms: tuple[str, ...]
    related: tuple[tuple[str, str], ...] = ()


class Thesaurus:
    """Words to their meanings, the most usual first where the file has them so.

    Args:
        data: the file's content.
        name: what messages call it.

    Raises:
        ValueError: it is no such file; says in which line.
    """

    def __init__(self, data: bytes, name: str = "thesaurus") -> None:
        head, *self._lines = data.splitlines() or [b""]
        try:
            self._encoding = codecs.lookup(head.decode("ascii").strip()).name
        except (LookupError, UnicodeDecodeError) as error:
            raise ValueError(
                f"{name}: its first line names no encoding ({error}). Give a thesaurus in the "
                "format of MyThes, th_en_US_v2.dat for instance."
            ) from error
        self._places: dict[bytes, range] = {}
        number = 0
        while number < len(self._lines):
            word, bar, count = self._lines[number].rpartition(b"|")
            meanings = range(number + 1, number + 1 + int(count)) if count.isdigit() else None
            if not bar or meanings is None or meanings.stop > len(self._lines):
                raise ValueError(f"{name}, line {number + 2}: an entry is WORD|NUMBER_OF_MEANINGS.")
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
    """Reads a thesaurus, once: a file of MyThes, or a folder of WordNet's.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is no thesaurus.
    """
    if Path(path).is_dir():
        from llmjax.data.augmentation.wordnet import WordNet  # which has the same meanings

        return WordNet(path)
    if not Path(path).is_file():
        raise FileNotFoundError(
            f"no thesaurus at {path!r}: apt-get install mythes-en-us, or name another file in the "
            "format of MyThes, or the folder of WordNet's database."
        )
    return Thesaurus(Path(path).read_bytes(), path)
