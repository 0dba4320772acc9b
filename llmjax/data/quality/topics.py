"""Topics: clusters of a sample of texts, and the distribution of texts over them."""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from llmjax.data.cleaning.extra import needs
from llmjax.data.quality import lists
from llmjax.data.quality.sketches import effective_number

# Texts to vectors [N, D], by any model; only their directions matter.
Embed = Callable[[Sequence[str]], np.ndarray]

# Fewer documents give no topics.
_LEAST_DOCUMENTS = 20
_DOCUMENTS_A_TOPIC = 10
_WORDS = 6


@dataclasses.dataclass(frozen=True)
class Topic:
    """A cluster of documents.

    Attributes:
        words: most characteristic of it, in order.
        share: its share of the documents that the topics were fitted to.
    """

    words: tuple[str, ...]
    share: float


class Topics:
    """Clusters that texts are assigned to.

    By default a text's vector is the TF-IDF of its words in 64 dimensions of latent semantic
    analysis, with logarithmic counts, and without English function words and words in more than
    half of the texts; spherical k-means finds the clusters. This is cheap, but blind to synonyms;
    `embed` may do better.

    Attributes:
        found: the topics, largest first; empty for too few texts or texts without words.
    """

    def __init__(
        self,
        found: Sequence[Topic] = (),
        centres: np.ndarray | None = None,
        words: "_Words | None" = None,
        embed: Embed | None = None,
    ) -> None:
        self.found = tuple(found)
        self._centres, self._words, self._embed = centres, words, embed

    @classmethod
    def fit(
        cls, texts: Sequence[str], embed: Embed | None = None, count: int = 12, seed: int = 0
    ) -> "Topics":
        """Fits topics to texts.

        Args:
            texts: the texts, in any order.
            embed: computes vectors of texts.
            count: number of topics; fewer if a topic would have fewer than ten documents.
            seed: random seed of the clustering.

        Raises:
            ImportError: scikit-learn is not installed.
        """
        with needs("scikit-learn"):
            from sklearn.cluster import KMeans
        texts = sorted(text for text in texts if text.strip())
        words = _Words.fit(texts) if len(texts) >= _LEAST_DOCUMENTS else None
        made = cls(words=words, embed=embed)
        if words is None:
            return made
        vectors = made._embedded(texts)
        different = len(np.unique(vectors.round(6), axis=0))
        count = min(count, len(texts) // _DOCUMENTS_A_TOPIC, different)
        means = KMeans(count, n_init=4, random_state=seed).fit(vectors)
        sizes = np.bincount(means.labels_, minlength=count)
        order = np.argsort(-sizes, kind="stable")[: np.count_nonzero(sizes)]
        made._centres = means.cluster_centers_[order]
        made.found = tuple(
            Topic(words.telling(texts, means.labels_ == label), float(sizes[label] / len(texts)))
            for label in order
        )
        return made

    def shares(self, texts: Sequence[str]) -> tuple[float, ...]:
        """Shares of the topics in the texts; empty without topics or texts."""
        texts = [text for text in texts if text.strip()]
        if self._centres is None or not texts:
            return ()
        products = self._embedded(texts) @ self._centres.T
        nearest = ((self._centres**2).sum(axis=1) - 2 * products).argmin(axis=1)
        counts = np.bincount(nearest, minlength=len(self._centres))
        return tuple((counts / len(texts)).tolist())

    def effective(self, texts: Sequence[str]) -> float | None:
        """Effective number of topics in the texts: exp of the entropy of their shares."""
        return effective_number(self.shares(texts))

    def vendi(self, texts: Sequence[str]) -> float | None:
        """The Vendi score of the texts' vectors; None without texts or words."""
        texts = [text for text in texts if text.strip()]
        if self._embed is not None and texts:
            return vendi_score(self._embed(texts))
        return vendi_score(self._words.weights(texts)) if self._words and texts else None

    def _embedded(self, texts: Sequence[str]) -> np.ndarray:
        if self._embed is not None:
            return _directions(np.asarray(self._embed(texts), np.float64))
        assert self._words is not None
        return _directions(self._words.main(texts))


def vendi_score(vectors: Any) -> float:
    """The Vendi score (Friedman and Dieng 2023, equation 2) of vectors [N, D], dense or sparse.

    It is exp of the entropy of the eigenvalues of K / N, where K holds the cosine similarities: 1
    if all vectors point the same way, N if all are orthogonal. A zero vector is like no other.
    """
    unit = _directions(vectors.toarray() if hasattr(vectors, "toarray") else vectors)
    cosines = unit @ unit.T
    np.fill_diagonal(cosines, 1.0)
    values = np.linalg.eigvalsh(cosines) / len(cosines)
    return float(effective_number(values[values > 1e-12].tolist()) or 1.0)


class _Words:
    """TF-IDF of words that several texts share, and its principal directions."""

    def __init__(self, weigh: Any, main: Any) -> None:
        self._weigh, self._main = weigh, main

    @classmethod
    def fit(cls, texts: Sequence[str], dimensions: int = 64) -> "_Words | None":
        """Learns weights and directions; None if fewer than two words are left."""
        with needs("scikit-learn"):
            from sklearn.decomposition import TruncatedSVD
            from sklearn.feature_extraction.text import TfidfVectorizer
        weigh = TfidfVectorizer(
            sublinear_tf=True,
            min_df=2,
            max_df=0.5,
            max_features=20_000,
            token_pattern=r"(?u)\b[^\W\d_]{2,}\b",
            stop_words=[word for word in lists.function_words("en") if word.isalpha()],
        )
        try:
            weights = weigh.fit_transform(texts)
        except ValueError:  # raised by sklearn for an empty vocabulary
            return None
        dimensions = min(dimensions, *(size - 1 for size in weights.shape))
        if dimensions < 1:
            return None
        return cls(weigh, TruncatedSVD(dimensions, random_state=0).fit(weights))

    def weights(self, texts: Sequence[str]) -> Any:
        """Sparse [N, words]."""
        return self._weigh.transform(texts)

    def main(self, texts: Sequence[str]) -> np.ndarray:
        """[N, dimensions]."""
        return self._main.transform(self.weights(texts))

    def telling(self, texts: Sequence[str], chosen: np.ndarray) -> tuple[str, ...]:
        """The words with the most additional weight in the chosen texts, relative to all texts."""
        weights = self.weights(texts)
        ahead = np.asarray(weights[chosen].mean(axis=0) - weights.mean(axis=0)).ravel()
        names = self._weigh.get_feature_names_out()
        return tuple(str(names[place]) for place in np.argsort(-ahead)[:_WORDS])


def _directions(vectors: np.ndarray) -> np.ndarray:
    vectors = np.asarray(vectors, np.float64)
    lengths = np.linalg.norm(vectors, axis=1, keepdims=True)
    return vectors / np.where(lengths > 0, lengths, 1)
