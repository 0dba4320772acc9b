"""A document as the metrics see it: arrays of words and their properties.

Cleaning steps tokenise words like the code of their papers, because published thresholds depend on
it. No threshold depends on these numbers, so words are found by one expression, about ten times
faster: a word is a run of letters and digits with inner apostrophes, or a number with its
punctuation; in scripts without spaces between words it is a character.
"""

import array
import dataclasses
import functools
import re
from collections.abc import Callable

import numpy as np

from llmjax.data.cleaning.document import Document
from llmjax.data.cleaning.shingles import UNSPACED
from llmjax.data.quality import lists
from llmjax.data.quality.sketches import hash_text

# All runs have a maximum length, to bound memory and time; longer runs are split.
_TAIL = r"|[.!?…]{1,64}(?=[\s\"'”’»)\]]|$)|\n"


def _tokens(letter: str, first: str = "") -> re.Pattern[str]:
    number, word = (
        r"\d{1,32}(?:[.,:]\d{1,32}){1,4}",
        rf"{letter}{{1,64}}(?:['’]{letter}{{1,64}}){{0,3}}",
    )
    return re.compile(rf"{number}{first}|{word}{_TAIL}")


# Most texts are ASCII or nearly so, and half of the time is spent in this expression.
_ASCII = _tokens("[A-Za-z0-9]")
_ANY = _tokens(rf"[^\W_{UNSPACED}]", rf"|[{UNSPACED}]")
_MARK = re.compile(r"[.!?…\n]")
_CAPS_LOCK = re.compile(r"[a-z][A-Z]{2,}")
# A full stop after one of these, or after one or two letters, does not end a sentence.
_ABBREVIATIONS = frozenset(
    ("etc", "approx", "resp", "incl", "vol", "fig", "dept", "inc", "ltd", "corp", "mrs", "prof")
)
_REMEMBERED = 1 << 17


class Is:
    """Properties of a single token, as bits."""

    WORD = 1
    NUMBER = 2  # has a digit
    LOWER = 4
    UPPER = 8  # two capitals or more, and nothing else
    CAPITAL = 16  # begins with a capital
    LISTED = 32  # alphabetic, in a language with a word list
    UNKNOWN = 64  # LISTED, but not in the list
    JUDGED = 128  # alphabetic, in a language with a list of function words
    FUNCTION = 256  # JUDGED, and in the list
    MISCASED = 512
    SHORT = 1024  # a full stop after it may belong to an abbreviation
    END = 2048  # ends a sentence
    BREAK = 4096  # ends a line


@dataclasses.dataclass(frozen=True)
class View:
    """The words of a document and their properties.

    Attributes:
        document: the document.
        data: its text in UTF-8.
        words: uint64 [N], hashes of its words in lower case, in order.
        is_word: int [N], properties of each word, bits of `Is`.
        before: [N], properties of the token before each word; BREAK before the first token.
        twice_before: [N], properties of the token before that.
    """

    document: Document
    data: bytes
    words: np.ndarray
    is_word: np.ndarray
    before: np.ndarray
    twice_before: np.ndarray

    def count(self, bits: int) -> int:
        """Number of words that have all of the bits of `Is`."""
        return int(np.count_nonzero((self.is_word & bits) == bits))

    @property
    def starts(self) -> np.ndarray:
        """Which words [N] begin a sentence, a line or the document."""
        return (self.before & (Is.END | Is.BREAK)) != 0


# Whether a lower-case word is correct in a language; None if that is unknown.
Known = Callable[[str, str], bool | None]


def listed(word: str, language: str) -> bool | None:
    """The default `Known`, from pyspellchecker's lists."""
    return lists.is_known(word, language) if lists.known_words(language) else None


def view(document: Document, known: Known = listed) -> View:
    """Splits a document into words and looks up their properties.

    Args:
        document: any document.
        known: decides which words are correct.
    """
    table = _table(document.language, known)
    text = document.text
    tokens = (_ASCII if text.isascii() else _ANY).findall(text)
    hashes, flags = table.look_up(tokens)
    (places,) = np.nonzero(flags & Is.WORD)
    before = np.concatenate([[Is.BREAK] * 2, flags])
    return View(
        document=document,
        data=text.encode("utf-8", "surrogatepass"),
        words=hashes[places],
        is_word=flags[places],
        before=before[places + 1],
        twice_before=before[places],
    )


class _Table(dict[str, int]):
    """Positions of hash and flags of a language's tokens in two arrays; computed on first use."""

    def __init__(self, language: str, known: Known) -> None:
        super().__init__()
        self._language, self._known = language, known
        self._hashes, self._flags = array.array("Q"), array.array("q")

    def look_up(self, tokens: list[str]) -> tuple[np.ndarray, np.ndarray]:
        """Hashes uint64 and flags int64 of tokens, [N] each."""
        if len(self) > _REMEMBERED:
            self.clear()
            del self._hashes[:], self._flags[:]
        places = np.fromiter(map(self.__getitem__, tokens), np.int64, len(tokens))
        if not len(places):
            return np.empty(0, np.uint64), np.empty(0, np.int64)
        hashes, flags = np.frombuffer(self._hashes, np.uint64), np.frombuffer(self._flags, np.int64)
        return hashes[places], flags[places]

    def __missing__(self, token: str) -> int:
        found, flags = self._of(token)
        self[token] = place = len(self._hashes)
        self._hashes.append(found)
        self._flags.append(flags)
        return place

    def _of(self, token: str) -> tuple[int, int]:
        if _MARK.match(token):
            return 0, Is.BREAK if token == "\n" else Is.END
        word = token.lower().replace("’", "'")
        flags = Is.WORD | self._shape(token)
        if word.replace("'", "").isalpha():
            flags |= self._listed(word)
        return hash_text(word), flags

    def _listed(self, word: str) -> int:
        flags = 0
        if function := lists.function_words(self._language):
            flags |= Is.JUDGED | (Is.FUNCTION if word in function else 0)
        known = self._known(word, self._language)
        if known is not None:
            flags |= Is.LISTED | (0 if known else Is.UNKNOWN)
        return flags

    def _shape(self, token: str) -> int:
        alone = self._language == "en" and token.partition("'")[0].partition("’")[0] == "i"
        upper = len(token) > 1 and token.isupper() and token.isalpha()
        short = len(token) <= 2 or token.lower() in _ABBREVIATIONS
        return (
            (Is.NUMBER if any(map(str.isdigit, token)) else 0)
            | (Is.LOWER if token.islower() else 0)
            | (Is.UPPER if upper else 0)
            | (Is.CAPITAL if token[0].isupper() else 0)
            | (Is.SHORT if short else 0)
            | (Is.MISCASED if alone or _CAPS_LOCK.match(token) else 0)
        )


@functools.lru_cache(maxsize=16)
def _table(language: str, known: Known) -> _Table:
    return _Table(language, known)
