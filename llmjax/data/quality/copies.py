"""Duplication: repeated documents, lines and passages."""

import dataclasses
from collections.abc import Sequence

import numpy as np

from llmjax.data.cleaning import exact, minhash, shingles
from llmjax.data.cleaning.duplicates import no_clusters
from llmjax.data.quality.metrics import metric
from llmjax.data.quality.sketches import Distinct, hash_text
from llmjax.data.quality.view import View

_ALIKE = minhash.MinHash()  # with FineWeb's parameters
# Documents per key of `NearSample` that are told apart.
_PER_KEY = 64


@dataclasses.dataclass(frozen=True)
class Duplication:
    """How much text is duplicated; None if there was nothing to count."""

    exact_copies: float | None = metric(
        "Exact copies",
        ".2%",
        "Share of documents that `exact_duplicates` would remove because an earlier one has the "
        "same text, ignoring case and white space.",
        "less",
    )
    near_copies: float | None = metric(
        "Near copies",
        ".2%",
        "Share of documents that `near_duplicates` would remove, including exact copies: MinHash "
        "of word 5-grams, 14 bands of 8, about 72 % in common. Beyond a few thousand documents, "
        "estimated from a sample that keeps nearly all look-alikes together.",
        "less",
    )
    repeated_lines: float | None = metric(
        "Repeated lines",
        ".2%",
        "Share of lines that occurred earlier in this corpus, ignoring surrounding white space and "
        "blank lines.",
        "less",
    )
    repeated_ngrams: float | None = metric(
        "Repeated 13-grams",
        ".2%",
        "Share of sequences of 13 words that occurred earlier in this corpus, ignoring case and "
        "punctuation.",
        "less",
    )


@dataclasses.dataclass(frozen=True)
class DuplicationSizes:
    """Memory limits of the duplication metrics.

    Attributes:
        documents: texts counted exactly, 8 bytes each; estimated beyond that.
        passages: the same for lines and for word sequences.
        near: documents compared with each other, 250 bytes each.
        ngram: words in a sequence.
    """

    documents: int = 1 << 16
    passages: int = 1 << 15
    near: int = 1 << 12
    ngram: int = 13


class DuplicationCounts:
    """The counts behind `Duplication`."""

    def __init__(self, sizes: DuplicationSizes = DuplicationSizes()) -> None:
        self._ngram = sizes.ngram
        self._texts = Distinct(sizes.documents)
        self._lines = Distinct(sizes.passages)
        self._ngrams = Distinct(sizes.passages)
        self._near = NearSample(sizes.near)

    def add(self, seen: View) -> None:
        """Counts a document."""
        text = seen.document.text
        self._texts.add(np.array([hash_text(exact.normalised(text))], np.uint64))
        lines = [hash_text(line) for line in map(str.strip, seen.document.lines) if line]
        self._lines.add(np.array(lines, np.uint64))
        self._ngrams.add(shingles.ngrams(seen.words, self._ngram))
        self._near.add(seen)

    def merge(self, other: "DuplicationCounts") -> None:
        """Adds the counts of another instance with the same sizes."""
        self._texts.merge(other._texts)
        self._lines.merge(other._lines)
        self._ngrams.merge(other._ngrams)
        self._near.merge(other._near)

    def result(self) -> Duplication:
        """The metrics."""
        return Duplication(
            exact_copies=self._texts.repeated,
            near_copies=self._near.repeated,
            repeated_lines=self._lines.repeated,
            repeated_ngrams=self._ngrams.repeated,
        )


class NearSample:
    """Estimates the share of near copies from a sample that keeps near copies together.

    A document's key is the lowest hash of its shingles. Two documents share it with a probability
    equal to the share of shingles that they have in common (Broder 1997). The documents with the
    lowest keys are kept, each as the bands of its MinHash signature; documents that share a band
    count as one.

    Args:
        size: number of keys to keep; a key seldom has more than one document.
    """

    def __init__(self, size: int) -> None:
        self._size = size
        self._found: dict[int, _Key] = {}
        self._bound = 1 << 64

    def add(self, seen: View) -> None:
        """Offers a document; documents without words are ignored."""
        count = min(_ALIKE.n, len(seen.words))
        if not count:
            return
        lowest = shingles.ngrams(seen.words, count).min(keepdims=True)
        # The lowest of many hashes is small in a long document; mixing again removes that bias.
        key = int(shingles.mixed(lowest)[0])
        if key < self._bound:
            grams = minhash.ngrams(seen.document.text, _ALIKE)
            self._at(key).add(minhash.bands([grams], _ALIKE).tobytes(), 1)
            self._prune()

    def merge(self, other: "NearSample") -> None:
        """Merges another sample of the same size."""
        for key, found in other._found.items():
            if key < self._bound:
                self._at(key).merge(found)
                self._prune()

    @property
    def repeated(self) -> float | None:
        """1 - groups of look-alikes / documents; None without documents."""
        self._prune(exactly=True)
        documents = sum(found.documents for found in self._found.values())
        if not documents:
            return None
        kept = [signature for found in self._found.values() for signature in found.signatures]
        return 1 - groups(kept) / documents

    def _at(self, key: int) -> "_Key":
        return self._found.setdefault(key, _Key())

    def _prune(self, exactly: bool = False) -> None:
        if len(self._found) > (self._size if exactly else 2 * self._size):
            keys = sorted(self._found)[: self._size]
            self._found = {key: self._found[key] for key in keys}
            self._bound = keys[-1] + 1


@dataclasses.dataclass
class _Key:
    """The documents of a key: their number, and the lowest of their signatures."""

    documents: int = 0
    signatures: set[bytes] = dataclasses.field(default_factory=set)

    def add(self, signature: bytes, documents: int) -> None:
        self.documents += documents
        self.signatures.add(signature)
        self._prune()

    def merge(self, other: "_Key") -> None:
        self.documents += other.documents
        self.signatures |= other.signatures
        self._prune()

    def _prune(self) -> None:
        if len(self.signatures) > _PER_KEY:
            self.signatures = set(sorted(self.signatures)[:_PER_KEY])


def groups(signatures: Sequence[bytes]) -> int:
    """Number of documents, given by their bands, after those that share a band are merged."""
    table = np.frombuffer(b"".join(signatures), np.uint64).reshape(-1, _ALIKE.bands)
    firsts = []
    for band in table.T:
        _, first, bucket = np.unique(band, return_index=True, return_inverse=True)
        firsts.append(first[bucket])
    left = np.concatenate(firsts).astype(np.uint64)
    right = np.tile(np.arange(len(table), dtype=np.uint64), _ALIKE.bands)
    return len(table) - len(no_clusters().joined(left, right).dropped)
