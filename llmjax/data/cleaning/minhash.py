"""Near duplicates: MinHash signatures, split into bands (Broder 1997; Leskovec et al., chapter 3).

Two documents are candidates if all hashes of one band are equal. At Jaccard similarity s this has
probability 1 - (1 - s^rows)^bands. As in FineWeb, candidates count as duplicates, transitively; or,
with `similarity`, only pairs whose sets of n-grams are that similar. In short:

    indices = [minhash.index(shard, settings) for shard in shards]  # each anywhere
    step = minhash.step(indices, settings)
"""

import dataclasses
import itertools
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import ClassVar, Literal

import numpy as np

from llmjax import checks
from llmjax.data.cleaning import index as indexing
from llmjax.data.cleaning import shingles
from llmjax.data.cleaning.document import Document
from llmjax.data.cleaning.duplicates import Duplicates, no_clusters
from llmjax.data.cleaning.extra import needs

_BATCH = 512


@dataclasses.dataclass(frozen=True)
class MinHash:
    """When documents are near duplicates.

    The defaults are FineWeb's (Penedo et al. 2024, section 3.4): 5-grams of words and 14 bands of
    8, which find 77 % of the pairs with similarity 0.75 and 92 % of those with 0.8.

    Attributes:
        n: words or characters in an n-gram; a shorter document is one n-gram.
        unit: unit of the n-grams.
        bands: number of bands of a signature.
        rows: hashes in a band.
        seed: seed of the hash functions.
        similarity: minimum Jaccard similarity of the sets of n-grams; None accepts all candidates.
        window: with `similarity`, a document is compared with this many that follow it in its
            bucket, and with the bucket's first.
    """

    n: int = 5
    unit: Literal["word", "character"] = "word"
    bands: int = 14
    rows: int = 8
    seed: int = 1
    similarity: float | None = None
    window: int = 32

    def __post_init__(self) -> None:
        """Raises ValueError if a field is invalid."""
        checks.require_choices(self, "MinHash")
        checks.require_at_least(1, self, "MinHash", ("n", "bands", "rows", "window"))
        if self.similarity is not None and not 0 < self.similarity <= 1:
            raise ValueError(f"MinHash.similarity={self.similarity}: must be in (0, 1], or None")

    def probability(self, similarity: float) -> float:
        """The probability that two documents of this Jaccard similarity are candidates."""
        return 1 - (1 - similarity**self.rows) ** self.bands

    @property
    def _hashing(self) -> str:
        """The settings that the hashes of an index depend on."""
        with needs("rensa"):
            from rensa import RMinHash
        shape = f"{self.n} {self.unit}s, {self.bands}x{self.rows}, seed {self.seed}"
        return f"MinHash({shape}, rensa {RMinHash.ALGORITHM_VERSION})"


# Settings of others: RefinedWeb (Penedo et al. 2023), which misses almost nothing from 0.8 on, and
# the default of NeMo Curator.
REFINED_WEB = MinHash(bands=450, rows=20)
NEMO_CURATOR = MinHash(n=24, unit="character", bands=20, rows=13)


@dataclasses.dataclass(frozen=True, eq=False)
class NearDuplicates(Duplicates):
    """Rejects documents that are near duplicates of an earlier document."""

    name: ClassVar[str] = "near_duplicates"
    reason: ClassVar[str] = "near duplicate"


@dataclasses.dataclass(frozen=True, eq=False)
class Candidates:
    """Pairs of documents that share a band.

    Attributes:
        files: files of all documents.
        left, right: keys, uint64 [N], of the earlier and the later document of each pair; sorted.
    """

    files: indexing.Files
    left: np.ndarray
    right: np.ndarray


def ngrams(text: str, settings: MinHash) -> np.ndarray:
    """Hashes of a text's n-grams, uint64, in order; empty for a text without words."""
    words = shingles.WORD.findall(text)
    if settings.unit == "word":
        items = shingles.hashes(words, numbers=False)
    else:
        letters = " ".join(map(shingles.normal, words)).encode("utf-32-le", "surrogatepass")
        items = shingles.mixed(np.frombuffer(letters, np.uint32).astype(np.uint64))
    return shingles.ngrams(items, max(1, min(settings.n, len(items))))


def signatures(sets: Sequence[np.ndarray], settings: MinHash) -> np.ndarray:
    """MinHash signatures of nonempty sets of hashes, uint32 [N, bands x rows]."""
    with needs("rensa"):
        from rensa import RMinHash
    ends = np.cumsum([0, *map(len, sets)], dtype=np.uint64)
    count = settings.bands * settings.rows
    matrix = RMinHash.digest_matrix_from_flat_token_hashes(
        np.concatenate(sets), ends, count, settings.seed
    )
    return np.array(matrix.to_rows(), np.uint32)


def bands(sets: Sequence[np.ndarray], settings: MinHash) -> np.ndarray:
    """The bands of the signatures of nonempty sets, one hash each, uint64 [N, bands]."""
    rows = signatures(sets, settings).astype(np.uint64)
    rows = rows.reshape(len(sets), settings.bands, settings.rows)
    found = np.zeros(rows.shape[:2], np.uint64)
    for k in range(settings.rows):
        found = shingles.mixed(found ^ rows[:, :, k])
    return found


def index(documents: Iterable[Document], settings: MinHash) -> indexing.Index:
    """The bands of a shard's documents, 16 bytes per band and document."""
    return indexing.build(_rows(documents, settings), settings.bands, settings._hashing)


def step(
    indices: Sequence[indexing.Index],
    settings: MinHash,
    sets: Mapping[int, np.ndarray] | None = None,
) -> NearDuplicates:
    """Builds the step that keeps the first document of every cluster.

    Args:
        indices: indices of all shards, in any order.
        settings: settings that the indices were made with.
        sets: with `similarity`, the n-grams of all candidates, from `candidate_sets`.

    Raises:
        ValueError: the indices were made with other settings, or the sets are missing.
    """
    if settings.similarity is None:
        files, clusters = indexing.all_files(indices, settings._hashing), no_clusters()
        for left, right in _pairs(indices, files, settings.bands, window=0):
            clusters = clusters.joined(left, right)
        return NearDuplicates(files, clusters)
    if sets is None:
        raise ValueError(
            "MinHash.similarity needs the n-grams of all candidates: give `candidate_sets` of "
            "every shard, joined."
        )
    found = verified(candidates(indices, settings), sets, settings.similarity)
    return NearDuplicates(found.files, no_clusters().joined(found.left, found.right))


def candidates(indices: Sequence[indexing.Index], settings: MinHash) -> Candidates:
    """All pairs of documents that share a band, within the window.

    Raises:
        ValueError: the indices were made with other settings.
    """
    files = indexing.all_files(indices, settings._hashing)
    left = right = np.zeros(0, np.uint64)
    for more_left, more_right in _pairs(indices, files, settings.bands, settings.window):
        left, right = _unique(
            np.concatenate([left, more_left]), np.concatenate([right, more_right])
        )
    return Candidates(files, left, right)


def candidate_sets(
    documents: Iterable[Document], pairs: Candidates, settings: MinHash
) -> dict[int, np.ndarray]:
    """The n-grams of those documents of a shard that are in a pair, by key, sorted and unique."""
    wanted = set(np.concatenate([pairs.left, pairs.right]).tolist())
    found = ((pairs.files.key(document), document) for document in documents)
    return {
        key: np.unique(ngrams(document.text, settings))
        for key, document in found
        if key is not None and key in wanted
    }


def verified(pairs: Candidates, sets: Mapping[int, np.ndarray], similarity: float) -> Candidates:
    """The pairs whose sets have at least this Jaccard similarity.

    Raises:
        ValueError: a document of a pair has no set.
    """
    missing = set(np.concatenate([pairs.left, pairs.right]).tolist()) - sets.keys()
    if missing:
        raise ValueError(
            f"the n-grams of {len(missing)} candidates are missing, first that of "
            f"{pairs.files.id(min(missing))!r}: join `candidate_sets` of every shard."
        )
    ends = zip(pairs.left.tolist(), pairs.right.tolist(), strict=True)
    alike = np.array([jaccard(sets[left], sets[right]) >= similarity for left, right in ends], bool)
    return Candidates(pairs.files, pairs.left[alike], pairs.right[alike])


def jaccard(left: np.ndarray, right: np.ndarray) -> float:
    """Jaccard similarity of two sorted nonempty sets."""
    both = len(np.intersect1d(left, right, assume_unique=True))
    return both / (len(left) + len(right) - both)


def _rows(
    documents: Iterable[Document], settings: MinHash
) -> Iterator[tuple[Document, np.ndarray]]:
    found = ((document, ngrams(document.text, settings)) for document in documents)
    comparable = ((document, grams) for document, grams in found if len(grams))
    while batch := list(itertools.islice(comparable, _BATCH)):
        rows = bands([grams for _, grams in batch], settings)[:, None]
        yield from zip((document for document, _ in batch), rows, strict=True)


def _pairs(
    indices: Sequence[indexing.Index], files: indexing.Files, bands: int, window: int
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Pairs each document of a bucket with the first, and with those before it in a window."""
    for band in range(bands):
        for hashes, keys in indexing.rows(indices, band, files):
            first = np.ones(len(hashes), bool)
            first[1:] = hashes[1:] != hashes[:-1]
            firsts = keys[first][np.cumsum(first) - 1]
            left, right = [firsts[~first]], [keys[~first]]
            for distance in range(1, window + 1):
                same = np.flatnonzero(hashes[distance:] == hashes[:-distance])
                if not len(same):
                    break
                left.append(keys[same])
                right.append(keys[same + distance])
            yield np.concatenate(left), np.concatenate(right)


def _unique(left: np.ndarray, right: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Distinct pairs, sorted."""
    order = np.lexsort((right, left))
    left, right = left[order], right[order]
    new = np.ones(len(left), bool)
    new[1:] = (left[1:] != left[:-1]) | (right[1:] != right[:-1])
    return left[new], right[new]
