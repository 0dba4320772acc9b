"""Information density: compressibility, content words, entropy, numbers and names."""

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
    """How much information texts carry; None if there was nothing to count."""

    compression: float | None = metric(
        "Compression ratio",
        ".2f",
        "Bytes divided by bytes after zstd (level 3), per document: much above prose (about 2 for "
        "a page) is boilerplate, much below is noise. Short documents compress less.",
    )
    content_words: float | None = metric(
        "Content words",
        ".1%",
        "Share of alphabetic words that are not function words (spaCy's stop words of the "
        "language). Languages without a list are ignored.",
    )
    word_entropy: float | None = metric(
        "Entropy, bits per word",
        ".2f",
        "Entropy of the frequencies of lower-cased words.",
        "more",
    )
    byte_entropy: float | None = metric(
        "Entropy, bits per byte",
        ".3f",
        "Entropy of the frequencies of UTF-8 bytes.",
    )
    numbers: float | None = metric(
        "Numbers",
        ".2%",
        "Share of words that contain a digit.",
    )
    names: float | None = metric(
        "Names",
        ".2%",
        "Share of capitalised words that are not at the start of a sentence or line and not all in "
        "capitals; in German this includes every noun.",
    )


class DensityCounts:
    """The counts behind `InformationDensity`.

    Args:
        bits: word frequencies are counted in 2^bits buckets.
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
        """Adds the counts of another instance."""
        self._counts.update(other._counts)
        self._bytes += other._bytes
        self._words.merge(other._words)

    def result(self) -> InformationDensity:
        """The metrics."""
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
    """Size of the zstd frame of some bytes; 0 for none."""
    return len(_compressor().compress(data)) if data else 0


@functools.lru_cache(maxsize=1)
def _compressor() -> zstandard.ZstdCompressor:
    return zstandard.ZstdCompressor(level=_LEVEL)
