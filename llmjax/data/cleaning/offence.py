"""The probability that people find a text offensive, by alt-profanity-check's linear model.

The package calls scikit-learn, which takes milliseconds per sentence, whatever its length; this
module computes the same numbers directly from the model's weights.
"""

import collections
import dataclasses
import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from llmjax.data.cleaning.extra import needs


def probabilities(texts: Sequence[str]) -> np.ndarray:
    """The same numbers as the package's `predict_prob`, float64 [T].

    Raises:
        ImportError: alt-profanity-check is not installed.
    """
    model = _model()
    words = [
        (text, model.vocabulary[word])
        for text, found in enumerate(map(model.words, texts))
        for word in found
        if word in model.vocabulary
    ]
    pairs = collections.Counter(words)
    owners, rows = np.array(list(pairs), int).reshape(-1, 2).T
    features = np.fromiter(pairs.values(), float, len(pairs)) * model.idf[rows]
    lengths = np.sqrt(np.bincount(owners, features**2, minlength=len(texts)))
    features = features / lengths[owners]
    scores = np.tile(model.intercepts, (len(texts), 1))
    np.add.at(scores, owners, features[:, None] * model.weights[rows])
    return np.mean(1 / (1 + np.exp(model.slopes * scores + model.offsets)), axis=1)


@dataclasses.dataclass(frozen=True, eq=False)
class _Model:
    """TF-IDF features of norm 1, and the mean of K linear models with a sigmoid (Platt 1999).

    Attributes:
        words: splits a text into words.
        vocabulary: row index of each word.
        idf: [V].
        weights: [V, K].
        intercepts, slopes, offsets: [K].
    """

    words: Callable[[str], list[str]]
    vocabulary: Mapping[str, int]
    idf: np.ndarray
    weights: np.ndarray
    intercepts: np.ndarray
    slopes: np.ndarray
    offsets: np.ndarray


@functools.lru_cache
def _model() -> _Model:
    with needs("alt-profanity-check"):
        from profanity_check.profanity_check import model, vectorizer
    folds: list[Any] = model.calibrated_classifiers_
    return _Model(
        words=vectorizer.build_analyzer(),
        vocabulary=vectorizer.vocabulary_,
        idf=vectorizer.idf_,
        weights=np.stack([fold.estimator.coef_[0] for fold in folds], axis=1),
        intercepts=np.array([fold.estimator.intercept_[0] for fold in folds]),
        slopes=np.array([fold.calibrators[0].a_ for fold in folds]),
        offsets=np.array([fold.calibrators[0].b_ for fold in folds]),
    )
