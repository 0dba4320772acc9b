"""How probable it is that people call a text offensive, by alt-profanity-check's linear model.

The package asks scikit-learn, which takes milliseconds for a sentence, whatever its length; here
the same numbers are computed from the model's weights.
"""

import collections
import dataclasses
import functools
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from llmjax.data.cleaning.extra import needs


def probability(text: str) -> float:
    """What the package's `predict_prob` says of a text.

    Raises:
        ImportError: alt-profanity-check is not installed.
    """
    model = _model()
    counts = collections.Counter(
        word for word in model.words(text) if word in model.vocabulary
    )
    rows = [model.vocabulary[word] for word in counts]
    features = np.fromiter(counts.values(), float, len(counts)) * model.idf[rows]
    length = np.linalg.norm(features) or 1.0
    scores = features @ model.weights[rows] / length + model.intercepts
    return float(np.mean(1 / (1 + np.exp(model.slopes * scores + model.offsets))))


@dataclasses.dataclass(frozen=True, eq=False)
class _Model:
    """TF-IDF features of length 1; K linear models, each with a sigmoid (Platt 1999), on average.

    Attributes:
        words: cuts a text.
        vocabulary: the rows of words.
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
