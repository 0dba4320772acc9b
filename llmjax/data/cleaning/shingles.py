"""Hashes of words and n-grams, by which documents are compared.

They are the same for every step that compares, in every language and process. A word is a run of
letters and digits with their marks, or one character of a script written without spaces.
"""

import functools
import re
import unicodedata
from collections.abc import Iterable

import numpy as np
import xxhash

from llmjax.data.cleaning.caches import each

# Thai, Lao, Burmese, Khmer, kana and Han: no spaces, so each character is a word.
UNSPACED = (
    "\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff"
    "\uf900-\ufaff\U00020000-\U0003ffff"
)
_LETTERS = rf"[^\W_{UNSPACED}]"
# Say how a word is broken, joined or shown: soft hyphens, joiners, variation selectors.
_INVISIBLE = "\u00ad\u200b-\u200d\u2060\ufe00-\ufe0f\ufeff"
# Accents and vowel signs of all scripts, which belong to their word; they end before U+1F000.
_MARKS = "".join(c for c in map(chr, range(0x1F000)) if unicodedata.category(c) in ("Mn", "Mc"))
_WITHIN = rf"[{''.join(re.sub(f'[{UNSPACED}]', '', _MARKS))}{_INVISIBLE}]"
WORD = re.compile(rf"[{UNSPACED}]|{_LETTERS}+(?:{_WITHIN}+{_LETTERS}*)*")
_DROPPED = re.compile(f"[{_INVISIBLE}]")
_DIGITS = re.compile(r"\d+")

_MULTIPLIER = np.uint64(0x9E3779B97F4A7C15)


def normal(words: str) -> str:
    """Words without case, accents and compatibility forms, so that variant spellings are equal."""
    if words.isascii():
        return words.lower()
    parts = unicodedata.normalize("NFKD", _DROPPED.sub("", words)).casefold()
    return "".join(part for part in parts if not unicodedata.combining(part))


def spaced(text: str) -> str:
    """The words of a text in normal form, with a space before and after each."""
    return f" {' '.join(map(normal, WORD.findall(text)))} "


def hashes(words: Iterable[str], *, numbers: bool = True) -> np.ndarray:
    """Hashes of words in normal form, uint64 [W].

    Args:
        words: words as `WORD` finds them.
        numbers: whether numbers differ; otherwise every run of digits counts as the same.
    """
    words = list(words)
    found = each(_WITH_NUMBERS if numbers else _WITHOUT_NUMBERS, words)
    return np.fromiter(found, np.uint64, len(words))


def hash_of(words: str) -> int:
    """The hash of a word, or of several words separated by spaces, in normal form."""
    return xxhash.xxh3_64_intdigest(normal(words).encode(errors="surrogatepass"))


# Words follow Zipf's law, so most of a corpus is found in these caches.
_WITH_NUMBERS = functools.lru_cache(maxsize=1 << 18)(hash_of)
_WITHOUT_NUMBERS = functools.lru_cache(maxsize=1 << 18)(
    lambda word: hash_of(_DIGITS.sub("0", word))
)


def ngrams(items: np.ndarray, n: int) -> np.ndarray:
    """Hashes of all runs of `n` items, in order: polynomials in the items, at equal cost for any n.

    Args:
        items: uint64 [W], themselves hashes.
        n: length of a run.

    Returns:
        uint64 [W - n + 1], or empty if there are fewer than `n` items.
    """
    count = len(items) - n + 1
    if count < 1:
        return np.zeros(0, np.uint64)
    powers, inverses = _powers(1 << len(items).bit_length())
    sums = np.zeros(len(items) + 1, np.uint64)
    np.cumsum(items * powers[: len(items)], out=sums[1:])
    return mixed((sums[n:] - sums[:-n]) * inverses[:count])


@functools.lru_cache
def _powers(count: int) -> tuple[np.ndarray, np.ndarray]:
    """Powers of the multiplier, from 1 on, and their inverses modulo 2^64."""
    multipliers = np.full(count, _MULTIPLIER)
    inverses = np.full(count, np.uint64(pow(int(_MULTIPLIER), -1, 1 << 64)))
    multipliers[0] = inverses[0] = 1
    return np.cumprod(multipliers), np.cumprod(inverses)


def mixed(values: np.ndarray) -> np.ndarray:
    """A bijection of uint64 in which each bit affects half of all bits (SplitMix64's finalizer)."""
    values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return values ^ (values >> np.uint64(31))
