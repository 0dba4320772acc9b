"""Computes the four families of metrics for documents, separately or together."""

import dataclasses
from collections.abc import Iterable, Mapping
from typing import Any

from llmjax.data.cleaning.document import Document
from llmjax.data.quality.copies import Duplication, DuplicationCounts, DuplicationSizes
from llmjax.data.quality.density import DensityCounts, InformationDensity
from llmjax.data.quality.language import LanguageCounts, LanguageQuality, Scorer
from llmjax.data.quality.metrics import metric
from llmjax.data.quality.topics import Embed, Topics
from llmjax.data.quality.variety import Diversity, DiversityCounts, DiversitySizes, Growth
from llmjax.data.quality.view import Known, listed, view


@dataclasses.dataclass(frozen=True)
class QualityConfig:
    """Settings of the quality measurement.

    The config is pickled for other processes, so functions must be defined at module level.

    Attributes:
        scorer: computes perplexities of texts, such as `evaluation.TextScorer`; None for none.
        embed: computes vectors of texts, for topics; None for TF-IDF.
        known: whether a lower-case word is correct in a language; uses pyspellchecker by default.
        topics: maximum number of topic clusters.
        word_bits: words are counted in 2^word_bits buckets, 8 bytes each.
        duplication: memory limits of the duplication metrics.
        diversity: memory limits of the diversity metrics.
        examples: documents shown per reason of a step.
        shown: characters shown of an example.
    """

    scorer: Scorer | None = None
    embed: Embed | None = None
    known: Known = listed
    topics: int = 12
    word_bits: int = 17
    duplication: DuplicationSizes = DuplicationSizes()
    diversity: DiversitySizes = DiversitySizes()
    examples: int = 3
    shown: int = 600


@dataclasses.dataclass(frozen=True)
class Amount:
    """The amount of text."""

    documents: int = metric("Documents", ",d", "Number of documents.")
    bytes: int = metric("Bytes", ",d", "Bytes of text in UTF-8.")
    words: int = metric("Words", ",d", "Runs of letters and digits; characters in CJK and Thai.")


@dataclasses.dataclass(frozen=True)
class Quality:
    """All metrics of a set of documents.

    Attributes:
        amount: how much text there is.
        language: how well it is written.
        density: how much information it carries.
        duplication: how much of it is duplicated.
        diversity: how varied it is.
        lengths: histogram of document lengths: [2^n, 2^(n+1)) words at n + 1, empty documents at 0.
        growth: growth of the vocabulary.
        topics: share of each topic in a sample of documents.
    """

    amount: Amount
    language: LanguageQuality
    density: InformationDensity
    duplication: Duplication
    diversity: Diversity
    lengths: tuple[int, ...]
    growth: Growth
    topics: tuple[float, ...]


# The families of metrics: the fields of `Quality` that hold them, with title and class.
FAMILIES: Mapping[str, tuple[str, Any]] = {
    "language": ("Language quality", LanguageQuality),
    "density": ("Information density", InformationDensity),
    "duplication": ("Duplication", Duplication),
    "diversity": ("Diversity", Diversity),
}


class Measurement:
    """Counts documents one by one, in bounded memory; parts of a corpus can be counted separately.

    The result does not depend on the order of `add` and `merge`, bit for bit.
    """

    def __init__(self, config: QualityConfig = QualityConfig()) -> None:
        self._config = config
        self._amount = dict.fromkeys(("documents", "bytes", "words"), 0)
        self._lengths = [0] * 65
        self._language = LanguageCounts(config.scorer)
        self._density = DensityCounts(config.word_bits)
        self._duplication = DuplicationCounts(config.duplication)
        self._diversity = DiversityCounts(config.diversity)

    def add(self, document: Document) -> None:
        """Counts a document."""
        seen = view(document, self._config.known)
        words = len(seen.words)
        for name, more in zip(self._amount, (1, len(seen.data), words), strict=True):
            self._amount[name] += more
        self._lengths[words.bit_length()] += 1
        for part in self._parts():
            part.add(seen)

    def merge(self, other: "Measurement") -> None:
        """Adds the counts of another instance with the same config."""
        self._amount = {name: n + other._amount[name] for name, n in self._amount.items()}
        self._lengths = [a + b for a, b in zip(self._lengths, other._lengths, strict=True)]
        for mine, others in zip(self._parts(), other._parts(), strict=True):
            mine.merge(others)

    @property
    def documents(self) -> int:
        """Number of documents counted."""
        return self._amount["documents"]

    def topics(self) -> Topics:
        """The topics of a sample of the documents."""
        return Topics.fit(self._diversity.sample, self._config.embed, self._config.topics)

    def result(self, topics: Topics | None = None) -> Quality:
        """The metrics. `topics` are the clusters to assign documents to, by default their own."""
        topics = topics or self.topics()
        used = max((place for place, count in enumerate(self._lengths) if count), default=-1) + 1
        return Quality(
            amount=Amount(**self._amount),
            language=self._language.result(),
            density=self._density.result(),
            duplication=self._duplication.result(),
            diversity=self._diversity.result(topics),
            lengths=tuple(self._lengths[:used]),
            growth=self._diversity.growth,
            topics=topics.shares(self._diversity.sample),
        )

    def _parts(self) -> tuple[Any, ...]:
        return self._language, self._density, self._duplication, self._diversity


def measure(documents: Iterable[Document], config: QualityConfig = QualityConfig()) -> Quality:
    """Computes all metrics of some documents, in one pass."""
    measurement = Measurement(config)
    for document in documents:
        measurement.add(document)
    return measurement.result()


def language_quality(
    documents: Iterable[Document], config: QualityConfig = QualityConfig()
) -> LanguageQuality:
    """Computes the language quality of documents."""
    return _counted(LanguageCounts(config.scorer), documents, config).result()


def information_density(
    documents: Iterable[Document], config: QualityConfig = QualityConfig()
) -> InformationDensity:
    """Computes the information density of documents."""
    return _counted(DensityCounts(config.word_bits), documents, config).result()


def duplication(
    documents: Iterable[Document], config: QualityConfig = QualityConfig()
) -> Duplication:
    """Computes the duplication within documents."""
    return _counted(DuplicationCounts(config.duplication), documents, config).result()


def diversity(documents: Iterable[Document], config: QualityConfig = QualityConfig()) -> Diversity:
    """Computes the diversity of documents."""
    counts = _counted(DiversityCounts(config.diversity), documents, config)
    return counts.result(Topics.fit(counts.sample, config.embed, config.topics))


def _counted(counts: Any, documents: Iterable[Document], config: QualityConfig) -> Any:
    for document in documents:
        counts.add(view(document, config.known))
    return counts
