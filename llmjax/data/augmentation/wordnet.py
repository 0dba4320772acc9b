"""Reads WordNet's own database, in the format of wndb(5WN) (Fellbaum 1998, "WordNet").

Each part of speech has two files. A line of `index.noun` is a word with the offsets of its synsets
in `data.noun`, most common first. A synset is a set of synonyms with pointers to other synsets.
Lines that begin with two spaces are the licence.
"""

from collections.abc import Iterator, Mapping
from pathlib import Path

from llmjax.data.augmentation.thesaurus import Meaning

# The suffixes of the files, in the order of a word's meanings.
_PARTS: Mapping[str, str] = {"noun": "NOUN", "verb": "VERB", "adj": "ADJ", "adv": "ADV"}
# Parts of speech in pointers; "s" is a satellite adjective.
_FILES: Mapping[str, str] = {"n": "noun", "v": "verb", "a": "adj", "s": "adj", "r": "adv"}
# Pointers that relate words, in the terms of MyThes.
_RELATIONS: Mapping[str, str] = {
    "!": "antonym",
    "@": "generic term",
    "@i": "generic term",
    "&": "similar term",
    "^": "related term",
}

_Pointer = tuple[str, int, str, int, int]


class WordNet:
    """Maps words to their meanings, like `Thesaurus` for a MyThes file.

    Args:
        folder: a folder with `index.noun`, `data.noun` and so on; parts of speech may be missing.

    Raises:
        FileNotFoundError: the folder has no index, or an index without its data.
        ValueError: an index is malformed; the message names the line.
    """

    def __init__(self, folder: str | Path) -> None:
        self._folder = Path(folder)
        self._data: dict[str, bytes] = {}
        self._places: dict[str, dict[bytes, tuple[int, ...]]] = {}
        for name in _PARTS:
            if (self._folder / f"index.{name}").is_file():
                self._places[name] = _index(self._folder / f"index.{name}")
                self._data[name] = (self._folder / f"data.{name}").read_bytes()
        if not self._places:
            raise FileNotFoundError(
                f"{str(folder)!r} has no index.noun, index.verb, index.adj or index.adv: name a "
                "folder of WordNet's database, such as Debian's /usr/share/wordnet."
            )

    def __len__(self) -> int:
        return len(set().union(*self._places.values()))

    def __contains__(self, word: str) -> bool:
        key = _key(word)
        return any(key in places for places in self._places.values())

    def __getitem__(self, word: str) -> tuple[Meaning, ...]:
        """A word's meanings; empty for an unknown word.

        Raises:
            ValueError: the data does not match the index.
        """
        key = _key(word)
        return tuple(
            self._meaning(word, name, place)
            for name, places in self._places.items()
            for place in places.get(key, ())
        )

    def _meaning(self, word: str, name: str, place: int) -> Meaning:
        words, pointers = self._synset(name, place)
        number = next((i for i, one in enumerate(words, 1) if one.lower() == word.lower()), 0)
        related = [
            (other, relation)
            for symbol, target, other_file, source, which in pointers
            if (relation := _RELATIONS.get(symbol)) and source in (0, number)
            for other in self._pointed(other_file, target, which)
        ]
        same = (one for i, one in enumerate(words, 1) if i != number)
        return Meaning(_PARTS[name], tuple(dict.fromkeys(same)), tuple(dict.fromkeys(related)))

    def _pointed(self, name: str, place: int, which: int) -> Iterator[str]:
        """The words of a synset that a pointer refers to: one or all of them."""
        if name in self._data:
            words, _ = self._synset(name, place)
            yield from words[which - 1 : which] if which else words

    def _synset(self, name: str, place: int) -> tuple[list[str], list[_Pointer]]:
        """The words at an offset, and (symbol, offset, file, source, target) of its pointers."""
        data = self._data[name]
        line, _, _ = data[place : data.find(b"\n", place)].partition(b" | ")  # all lines end in one
        try:
            offset, *fields = line.decode("latin-1").split()
            if int(offset) != place:
                raise ValueError(f"the place of another synset, {offset}")
            count = int(fields[2], 16)
            words = [_word(field) for field in fields[3 : 3 + 2 * count : 2]]
            rest = fields[4 + 2 * count :]
            pointers = [rest[i : i + 4] for i in range(0, 4 * int(fields[3 + 2 * count]), 4)]
            return words, [
                (symbol, int(target), _FILES[part], int(ends[:2], 16), int(ends[2:], 16))
                for symbol, target, part, ends in pointers
            ]
        except (ValueError, IndexError, KeyError) as error:
            raise ValueError(
                f"{self._folder / f'data.{name}'}: at byte {place} is no synset ({error}). Take "
                "index and data from one release, as they are."
            ) from error


def _index(path: Path) -> dict[bytes, tuple[int, ...]]:
    """The words of an index, in its spelling, with the offsets of their synsets."""
    places = {}
    for number, line in enumerate(path.read_bytes().splitlines(), 1):
        if line.startswith(b"  "):
            continue
        try:
            lemma, _, count, pointers, *rest = line.split()
            # Two counts follow the pointer symbols.
            found = tuple(map(int, rest[int(pointers) + 2 :]))
            if not found or len(found) != int(count):
                raise ValueError(f"{len(found)} synsets")
        except ValueError as error:
            raise ValueError(
                f"{path}, line {number}: not an entry of a WordNet index ({error})."
            ) from error
        places[lemma] = found
    return places


def _key(word: str) -> bytes:
    return word.replace(" ", "_").encode("latin-1", "replace")


def _word(field: str) -> str:
    """A word in normal spelling; an adjective may have a position marker: `galore(ip)`."""
    return field.partition("(")[0].replace("_", " ")
