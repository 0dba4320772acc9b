"""Duplication: documents, lines and passages that were there before."""

import dataclasses
from collections.abc import Sequence

import numpy as np

from llmjax.data.cleaning import exact, minhash, shingles
from llmjax.data.cleaning.duplicates import no_clusters
from llmjax.data.quality.metrics import metric
from llmjax.data.quality.sketches import Distinct, hash_text
from llmjax.data.quality.view import View

_ALIKE = minhash.MinHash()  # as FineWeb
# Documents of one key of `NearSample` that are told apart.
_PER_KEY = 64


@dataclasses.dataclass(frozen=True)
class Duplication:
    """How much is said twice; None where nothing could be counted."""

    exact_copies: float | None = metric(
        "Exact copies",
        ".2%",
        "Share of documents that `exact_duplicates` would remove: an earlier one has the same "
        "text, case and white space apart.",
        "less",
    )
    near_copies: float | None = metric(
        "Near copies",
        ".2%",
        "Share of documents that `near_duplicates` would remove, exact copies among them: MinHash "
        "of word 5-grams, 14 bands of 8, about 72 % in common. Beyond some thousand documents, "
        "of a sample that keeps look-alikes together but for a few.",
        "less",
    )
    repeated_lines: float | None = metric(
        "Repeated lines",
        ".2%",
        "Share of lines that stood in this corpus before, white space at their ends apart, blank "
        "lines left out.",
        "less",
    )
    repeated_ngrams: float | None = metric(
        "Repeated 13-grams",
        ".2%",
        "Share of sequences of 13 words that stood in this corpus before, case and marks apart.",
        "less",
    )


@dataclasses.dataclass(frozen=True)
class DuplicationSizes:
    """How much memory duplication may take.

    Attributes:
        documents: texts that are counted exactly, 8 bytes each; above, estimated.
        passages: the same of lines, and of sequences of words.
        near: documents that are compared with each other, 250 bytes each.
        ngram: words of a sequence.
    """

    documents: int = 1 << 16
    passages: int = 1 << 15
    near: int = 1 << 12
    ngram: int = 13


class DuplicationCounts:
    """What `Duplication` is worked out from."""

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
        """Adds another's counts, of the same sizes."""
        self._texts.merge(other._texts)
        self._lines.merge(other._lines)
        self._ngrams.merge(other._ngrams)
        self._near.merge(other._near)

    def result(self) -> Duplication:
        """The numbers."""
        return Duplication(
            exact_copies=self._texts.repeated,
            near_copies=self._near.repeated,
            repeated_lines=self._lines.repeated,
            repeated_ngrams=self._ngrams.repeated,
        )


class NearSample:
    """Which share of documents is nearly another's copy, from a sample that keeps these together.

    A document's key is the lowest hash of its shingles, which two documents have in common as
    often as they have shingles in common (Broder 1997). The documents of the lowest keys are
    kept, each as the bands of its MinHash signature; those that share a band are one.

    Args:
        size: keys that are kept; a key seldom has more than one document.
    """

    def __init__(self, size: int) -> None:
        self._size = size
        self._found: dict[int, _Key] = {}
        self._bound = 1 << 64

    def add(self, seen: View) -> None:
        """Offers a document; one without words is left out."""
        count = min(_ALIKE.n, len(seen.words))
        if not count:
            return
        lowest = shingles.ngrams(seen.words, count).min(keepdims=True)
        # The lowest of many hashes is low in a long document: mixed again, all are alike.
        key = int(shingles.mixed(lowest)[0])
        if key < self._bound:
            grams = minhash.ngrams(seen.document.text, _ALIKE)
            self._at(key).add(minhash.bands([grams], _ALIKE).tobytes(), 1)
            self._prune()

    def merge(self, other: "NearSample") -> None:
        """Takes in another's sample, of the same size."""
        for key, found in other._found.items():
            if key < self._bound:
                self._at(key).merge(found)
                self._prune()

    @property
    def repeated(self) -> float | None:
        """1 - groups of look-alikes / documents; none of nothing."""
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
    """Documents with a key: how many, and the lowest of their signatures."""

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
    """How many are left of documents, each as its bands, once those that share one are one."""
    table = np.frombuffer(b"".join(signatures), np.uint64).reshape(-1, _ALIKE.bands)
    firsts = []
    for band in table.T:
        _, first, bucket = np.unique(band, return_index=True, return_inverse=True)
        firsts.append(first[bucket])
    left = np.concatenate(firsts).astype(np.uint64)
    right = np.tile(np.arange(len(table), dtype=np.uint64), _ALIKE.bands)
    return len(table) - len(no_clusters().joined(left, right).dropped)
