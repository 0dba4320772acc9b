"""Diversity: topics, vocabulary and its growth, and sources."""

import collections
import dataclasses

import numpy as np

from llmjax.data.quality.metrics import metric
from llmjax.data.quality.sketches import Distinct, Sample, effective_number, hash_text
from llmjax.data.quality.topics import Topics
from llmjax.data.quality.view import View

_LEVELS = 40  # each has half of the documents of the previous one
# Levels with fewer documents say nothing about a law.
_LEAST_DOCUMENTS = 16


@dataclasses.dataclass(frozen=True)
class Growth:
    """Vocabulary size by text length, for nested random parts of a corpus; the last is all of it.

    Attributes:
        words: number of words in each part.
        vocabulary: number of distinct words in each part.
    """

    words: tuple[int, ...] = ()
    vocabulary: tuple[float, ...] = ()


@dataclasses.dataclass(frozen=True)
class Diversity:
    """How varied texts are in topics and words; None if it cannot be computed."""

    topics: float | None = metric(
        "Topics",
        ".1f",
        "Effective number: exp of the entropy of a sample's distribution over clusters (k-means of "
        "TF-IDF or of the given embeddings), which are the same for all sources and steps.",
        "more",
    )
    spread: float | None = metric(
        "Vendi score",
        ",.1f",
        "Effective number of distinct documents in a sample of up to 512 (Friedman and Dieng "
        "2023): exp of the entropy of the eigenvalues of their cosine similarities / their number.",
        "more",
    )
    vocabulary: float | None = metric(
        "Vocabulary",
        ",.0f",
        "Number of distinct words in lower case.",
    )
    heaps_exponent: float | None = metric(
        "Heaps' exponent",
        ".3f",
        "β of vocabulary = K · words^β, fitted to random parts of the corpus (Heaps 1978): 0.4 to "
        "0.7 for prose; less is repetition, near 1 is noise.",
    )
    heaps_factor: float | None = metric(
        "Heaps' factor",
        ",.3g",
        "K of that law.",
    )
    sources: float | None = metric(
        "Sources",
        ".2f",
        "Effective number: exp of the entropy of their shares of the bytes.",
        "more",
    )


@dataclasses.dataclass(frozen=True)
class DiversitySizes:
    """Memory limits of the diversity metrics.

    Attributes:
        vocabulary: distinct words counted exactly, 8 bytes each; estimated beyond that.
        sample: number of documents that topics are fitted to.
        characters: kept of each sampled document.
    """

    vocabulary: int = 1 << 14
    sample: int = 512
    characters: int = 2000


class DiversityCounts:
    """The counts behind `Diversity`."""

    def __init__(self, sizes: DiversitySizes = DiversitySizes()) -> None:
        self._sizes = sizes
        self._sample: Sample[str] = Sample(sizes.sample)
        self._sources: collections.Counter[str] = collections.Counter()
        self._documents: collections.Counter[int] = collections.Counter()
        self._levels: dict[int, Distinct] = {}

    def add(self, seen: View) -> None:
        """Counts a document."""
        document = seen.document
        self._sources[document.source] += len(seen.data)
        place = hash_text(document.id or document.text)
        for level in range(min(64 - place.bit_length(), _LEVELS) + 1):
            self._documents[level] += 1
            self._level(level).add(seen.words)
        key = (place, hash_text(document.text))
        self._sample.add(key, lambda: document.text[: self._sizes.characters])

    def merge(self, other: "DiversityCounts") -> None:
        """Adds the counts of another instance with the same sizes."""
        self._sources.update(other._sources)
        self._documents.update(other._documents)
        self._sample.merge(other._sample)
        for level, words in other._levels.items():
            self._level(level).merge(words)

    @property
    def sample(self) -> list[str]:
        """The beginnings of a random sample of documents."""
        return [text for _, text in self._sample.items()]

    @property
    def growth(self) -> Growth:
        """The growth of the vocabulary, over parts of 16 documents or more."""
        enough = [n for n, count in self._documents.items() if count >= _LEAST_DOCUMENTS]
        levels = [n for n in sorted(enough, reverse=True) if self._levels[n].total]
        words = tuple(self._levels[level].total for level in levels)
        return Growth(words, tuple(self._levels[level].count for level in levels))

    def result(self, topics: Topics | None = None) -> Diversity:
        """The metrics.

        Args:
            topics: clusters to assign documents to; by default those of this sample.
        """
        sample = self.sample
        topics = topics or Topics.fit(sample)
        law = heaps_law(self.growth)
        total = sum(self._sources.values())
        shares = [count / total for count in self._sources.values() if total]
        return Diversity(
            topics=topics.effective(sample),
            spread=topics.vendi(sample),
            vocabulary=self._levels[0].count if self._levels else None,
            heaps_exponent=law[1] if law else None,
            heaps_factor=law[0] if law else None,
            sources=effective_number(sorted(shares)),
        )

    def _level(self, level: int) -> Distinct:
        return self._levels.setdefault(level, Distinct(self._sizes.vocabulary))


def heaps_law(growth: Growth) -> tuple[float, float] | None:
    """K and β of vocabulary = K · words^β, by least squares on logarithms.

    None for fewer than three parts.
    """
    if len(growth.words) < 3:
        return None
    x, y = np.log(growth.words), np.log(growth.vocabulary)
    slope, intercept = np.polyfit(x, y, 1)
    return float(np.exp(intercept)), float(slope)
