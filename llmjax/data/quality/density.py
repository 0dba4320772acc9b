"""Information density: what compresses away, words that carry content, entropy, numbers, names."""

import collections
import dataclasses
import functools

import numpy as np
import zstandard

from llmjax.data.quality.metrics import metric
from llmjax.data.quality.sketches import Buckets, entropy
from llmjax.data.quality.view import Is, View

_LEVEL = 3


@dataclasses.dataclass(frozen=True)
class InformationDensity:
    """How much texts say; None where nothing could be counted."""

    compression: float | None = metric(
        "Compression ratio",
        ".2f",
        "Bytes over bytes after zstd (level 3), each document by itself: much above what prose has "
        "(about 2 for a page) is boilerplate, much below is noise. Short documents compress less.",
    )
    content_words: float | None = metric(
        "Content words",
        ".1%",
        "Share of the words of letters that are no function words (spaCy's stop words of the "
        "language). Languages without a list are left out.",
    )
    word_entropy: float | None = metric(
        "Entropy, bits a word",
        ".2f",
        "Of the frequencies of words in lower case.",
        "more",
    )
    byte_entropy: float | None = metric(
        "Entropy, bits a byte",
        ".3f",
        "Of the frequencies of bytes in UTF-8.",
    )
    numbers: float | None = metric(
        "Numbers",
        ".2%",
        "Share of words that have a digit.",
    )
    names: float | None = metric(
        "Names",
        ".2%",
        "Share of words that begin with a capital, neither at the start of a sentence or line nor "
        "all in capitals; in German every noun.",
    )


class DensityCounts:
    """What `InformationDensity` is worked out from.

    Args:
        bits: frequencies of words are counted in 2^bits buckets.
    """

    def __init__(self, bits: int = 17) -> None:
        self._counts: collections.Counter[str] = collections.Counter()
        self._bytes = np.zeros(256, np.int64)
        self._words = Buckets(bits)

    def add(self, seen: View) -> None:
        """Counts a document."""
        capital = (seen.is_word & Is.CAPITAL) != 0
        shouted = (seen.is_word & Is.UPPER) != 0
        self._counts.update(
            bytes=len(seen.data),
            compressed=compressed_bytes(seen.data),
            words=len(seen.words),
            judged=seen.count(Is.JUDGED),
            function=seen.count(Is.FUNCTION),
            numbers=seen.count(Is.NUMBER),
            names=int(np.count_nonzero(capital & ~shouted & ~seen.starts)),
        )
        self._bytes += np.bincount(np.frombuffer(seen.data, np.uint8), minlength=256)
        self._words.add(seen.words)

    def merge(self, other: "DensityCounts") -> None:
        """Adds another's counts."""
        self._counts.update(other._counts)
        self._bytes += other._bytes
        self._words.merge(other._words)

    def result(self) -> InformationDensity:
        """The numbers."""
        count = self._counts
        words = count["words"]
        return InformationDensity(
            compression=count["bytes"] / count["compressed"] if count["bytes"] else None,
            content_words=1 - count["function"] / count["judged"] if count["judged"] else None,
            word_entropy=self._words.entropy,
            byte_entropy=entropy(self._bytes),
            numbers=count["numbers"] / words if words else None,
            names=count["names"] / words if words else None,
        )


def compressed_bytes(data: bytes) -> int:
    """Size of zstd's frame for some bytes; 0 for none."""
    return len(_compressor().compress(data)) if data else 0


@functools.lru_cache(maxsize=1)
def _compressor() -> zstandard.ZstdCompressor:
    return zstandard.ZstdCompressor(level=_LEVEL)
