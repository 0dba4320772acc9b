"""Quality scores from a linear model trained on good and bad samples.

Brown et al. 2020, "Language Models are Few-Shot Learners" (arXiv:2005.14165), appendix A, and
Joulin et al. 2016, "Bag of Tricks for Efficient Text Classification" (arXiv:1607.01759): logistic
regression on hashed n-grams of words, which reads thousands of documents per second.
"""

import dataclasses
import functools
import json
import pathlib
from collections.abc import Iterable, Sequence
from typing import Any, ClassVar

import numpy as np
import safetensors
import safetensors.numpy

from llmjax.data.cleaning import contents
from llmjax.data.cleaning.document import Document, Rejected
from llmjax.data.cleaning.extra import needs
from llmjax.data.cleaning.rules import require_ranges

_KIND = "llmjax linear quality model 1"


@dataclasses.dataclass(frozen=True)
class QualityModel:
    """Rejects documents that a model of `train` scores low, and stores the score as `quality`.

    Attributes:
        model: a file written by `LinearModel.save`.
        minimum: minimum probability of being good, if good and bad were equally frequent.
    """

    name: ClassVar[str] = "quality_model"

    model: str = ""
    minimum: float = 0.5

    def __post_init__(self) -> None:
        require_ranges(self, minimum=(0, 1))

    def __call__(self, document: Document) -> Document | Rejected:
        """The document with its score, or its rejection.

        Raises:
            ValueError: the model cannot be read.
        """
        score = float(load(self.model).scores([document.text])[0])
        document = document.with_metadata(quality=round(score, 4))
        return Rejected(document, "low quality", score) if score < self.minimum else document

    def plain(self) -> dict[str, Any]:
        """The settings as plain values, with a digest instead of the model's file."""
        model = contents.digest(self.model) if self.model else ""
        return dataclasses.asdict(self) | {"model": model}


@dataclasses.dataclass(frozen=True, eq=False)
class LinearModel:
    """Logistic regression on n-grams of words and marks, hashed to a fixed number of features.

    Attributes:
        weights: float32 [features].
        bias: bias of the decision.
        ngrams: length of the longest n-gram.
    """

    weights: np.ndarray
    bias: float
    ngrams: int = 2

    def scores(self, texts: Sequence[str]) -> np.ndarray:
        """The probability that each text is good, float64 [N]."""
        features = _features(texts, len(self.weights), self.ngrams)
        return 1 / (1 + np.exp(-(features @ self.weights + self.bias)))

    def save(self, path: str | pathlib.Path) -> None:
        """Writes a safetensors file: numbers and their meaning, no code."""
        meaning = {"kind": _KIND, "bias": self.bias, "ngrams": self.ngrams}
        arrays = {"weights": self.weights}
        content = safetensors.numpy.save(arrays, {"model": json.dumps(meaning)})
        partial = pathlib.Path(f"{path}.tmp")
        partial.write_bytes(content)
        partial.replace(path)


def train(
    good: Iterable[str],
    bad: Iterable[str],
    *,
    ngrams: int = 2,
    features: int = 1 << 18,
    regularization: float = 0.1,
) -> LinearModel:
    """Trains a classifier of good and bad texts. The same samples give the same model.

    Args:
        good: wanted texts.
        bad: unwanted texts. Their number may differ, since both classes have equal total weight.
        ngrams: length of the longest n-gram of words and marks.
        features: number of features that n-grams are hashed to.
        regularization: weight of half the squared norm of all weights, against the summed loss.

    Raises:
        ValueError: a class has no text.
        ImportError: scikit-learn is not installed.
    """
    texts, labels = [], []
    for label, kind in ((1, good), (0, bad)):
        samples = list(kind)
        if not samples:
            raise ValueError(f"there is no {'good' if label else 'bad'} text to train on")
        texts += samples
        labels += [label] * len(samples)
    with needs("scikit-learn"):
        from sklearn.linear_model import LogisticRegression
        from threadpoolctl import threadpool_limits
    # With the default tolerance, probabilities are uncertain in the third digit.
    regression = LogisticRegression(
        C=1 / regularization, class_weight="balanced", max_iter=1000, tol=1e-7
    )
    with threadpool_limits(
        1
    ):  # threads change the order of sums, and block each other on busy cores
        regression.fit(_features(texts, features, ngrams), labels)
    weights = regression.coef_[0].astype(np.float32)
    return LinearModel(weights, float(regression.intercept_[0]), ngrams)


@functools.lru_cache(maxsize=4)
def load(path: str) -> LinearModel:
    """Reads a file written by `LinearModel.save`, once.

    Raises:
        ValueError: the file does not exist or holds something else.
    """
    if not path:
        raise ValueError("quality_model.model: name the file of a model, from quality_model.train")
    try:
        with safetensors.safe_open(path, "numpy") as file:
            meaning = json.loads((file.metadata() or {})["model"])
            if meaning["kind"] != _KIND:
                raise ValueError(f"it holds {meaning['kind']!r}")
            return LinearModel(file.get_tensor("weights"), meaning["bias"], meaning["ngrams"])
    except (OSError, ValueError, KeyError, safetensors.SafetensorError) as error:
        raise ValueError(f"quality_model.model={path} cannot be read: {error}") from error


def _features(texts: Sequence[str], features: int, ngrams: int) -> Any:
    """Sparse matrix [N, features]; invalid Unicode in a text counts as question marks."""
    valid = (text.encode("utf-8", "replace") for text in texts)
    return _vectorizer(features, ngrams).transform(valid)


@functools.lru_cache(maxsize=4)
def _vectorizer(features: int, ngrams: int) -> Any:
    with needs("scikit-learn"):
        from sklearn.feature_extraction.text import HashingVectorizer
    return HashingVectorizer(
        n_features=features,
        ngram_range=(1, ngrams),
        token_pattern=r"\w+|[^\w\s]",
        alternate_sign=False,
    )
