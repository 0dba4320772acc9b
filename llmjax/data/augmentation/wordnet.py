"""WordNet's own database, as wndb(5WN) describes it (Fellbaum 1998, "WordNet").

For each part of speech there are two files. A line of `index.noun` is a word with the places of its
synsets in `data.noun`, the most usual first; what stands at such a place is a synset: words that
mean the same, and pointers to others. Lines that begin with two spaces are the licence.
"""

from collections.abc import Iterator, Mapping
from pathlib import Path

from llmjax.data.augmentation.thesaurus import Meaning

# The files' suffixes, in the order in which a word's meanings are given.
_PARTS: Mapping[str, str] = {"noun": "NOUN", "verb": "VERB", "adj": "ADJ", "adv": "ADV"}
# In pointers; "s" is an adjective whose meaning is near that of another.
_FILES: Mapping[str, str] = {"n": "noun", "v": "verb", "a": "adj", "s": "adj", "r": "adv"}
# What the pointers mean that say something of single words, in the terms of MyThes' thesauri.
_RELATIONS: Mapping[str, str] = {
    "!": "antonym",
    "@": "generic term",
    "@i": "generic term",
    "&": "similar term",
    "^": "related term",
}

_Pointer = tuple[str, int, str, int, int]


class WordNet:
    """Words to their meanings; what `Thesaurus` is for a file of MyThes.

    Args:
        folder: of `index.noun`, `data.noun` and so on; parts of speech may be missing.

    Raises:
        FileNotFoundError: there is no index in it, or one without its data.
        ValueError: a line of an index is none; says which.
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
                "folder of WordNet's database, Debian's /usr/share/wordnet for instance."
            )

    def __len__(self) -> int:
        return len(set().union(*self._places.values()))

    def __contains__(self, word: str) -> bool:
        key = _key(word)
        return any(key in places for places in self._places.values())

    def __getitem__(self, word: str) -> tuple[Meaning, ...]:
        """A word's meanings, none where it has none.

        Raises:
            ValueError: the data do not belong to the index.
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
        """The word of a synset that a pointer means, or all of them."""
        if name in self._data:
            words, _ = self._synset(name, place)
            yield from words[which - 1 : which] if which else words

    def _synset(self, name: str, place: int) -> tuple[list[str], list[_Pointer]]:
        """The words at a place, and (symbol, place, file, source, target) of its pointers."""
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
    """The words of an index, as it writes them, and the places of their synsets."""
    places = {}
    for number, line in enumerate(path.read_bytes().splitlines(), 1):
        if line.startswith(b"  "):
            continue
        try:
            lemma, _, count, pointers, *rest = line.split()
            # Behind the symbols of pointers stand two counts.
            found = tuple(map(int, rest[int(pointers) + 2 :]))
            if not found or len(found) != int(count):
                raise ValueError(f"{len(found)} synsets")
        except ValueError as error:
            raise ValueError(
                f"{path}, line {number}: no entry of an index of WordNet ({error})."
            ) from error
        places[lemma] = found
    return places


def _key(word: str) -> bytes:
    return word.replace(" ", "_").encode("latin-1", "replace")


def _word(field: str) -> str:
    """A word as it is written; adjectives may say in brackets where they stand: `galore(ip)`."""
    return field.partition("(")[0].replace("_", " ")
