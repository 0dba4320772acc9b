"""Rejects documents that a language model finds too surprising or too predictable.

Wenzek et al. 2020, "CCNet: Extracting High Quality Monolingual Datasets from Web Crawl Data"
(arXiv:1911.00359): perplexity under a model of good text identifies documents like that text. The
most predictable text is no use either: of the thirds of a corpus, the middle one taught most
(Marion et al. 2023, "When Less is More", arXiv:2309.04564). Hence two limits.
"""

import dataclasses
import math
from collections.abc import Callable, Iterable, Sequence
from typing import ClassVar

from llmjax.data.cleaning.document import Document, Rejected
from llmjax.data.cleaning.rules import judge, require_ranges

# Computes perplexities of texts; `llmjax.evaluation.TextScorer` does so with a model of ours. Its
# `fingerprint`, if any, is a string that changes with the model.
Scorer = Callable[[Sequence[str]], Iterable[float]]


@dataclasses.dataclass(frozen=True)
class Perplexity:
    """Limits of perplexity, and the model that computes it.

    Attributes:
        model: the folder of the model's run.
        minimum: a text below it is too predictable.
        maximum: a text above it is too surprising. Both depend on the model and its tokenizer: take
            them from percentiles of a sample; CCNet's code uses the 30th and the 60th by language.
    """

    name: ClassVar[str] = "perplexity"

    model: str = ""
    minimum: float = 0.0
    maximum: float = math.inf

    def __post_init__(self) -> None:
        require_ranges(self, minimum=(0, math.inf), maximum=(0, math.inf))
        if self.minimum > self.maximum:
            raise ValueError(f"{self.name}.minimum={self.minimum} is above maximum={self.maximum}")


@dataclasses.dataclass(frozen=True)
class Step:
    """Keeps documents within the limits, and stores their `perplexity`.

    Attributes:
        settings: the limits.
        scorer: computes perplexities of texts, several at a time.
    """

    name: ClassVar[str] = Perplexity.name

    settings: Perplexity
    scorer: Scorer

    def __call__(self, document: Document) -> Document | Rejected:
        """The document, or its rejection."""
        return self.batch([document])[0]

    def batch(self, documents: Sequence[Document]) -> list[Document | Rejected]:
        """The outcomes of several documents, with one call of the scorer."""
        texts = [document.text.encode("utf-8", "replace").decode() for document in documents]
        scores = self.scorer(texts)
        return [self._judged(*pair) for pair in zip(documents, scores, strict=True)]

    def _judged(self, document: Document, score: float) -> Document | Rejected:
        if math.isnan(score):
            raise ValueError("the scorer returned a perplexity of nan: its model is broken")
        low, high = score < self.settings.minimum, score > self.settings.maximum
        if math.isfinite(score):
            document = document.with_metadata(perplexity=float(f"{score:.6g}"))
        return judge(
            document, [("perplexity too low", score, low), ("perplexity too high", score, high)]
        )


def fingerprint(scorer: Scorer | None) -> str:
    """The fingerprint of a scorer's model; "" if it has none."""
    return str(getattr(scorer, "fingerprint", ""))


def step(settings: Perplexity, scorer: Scorer) -> Step:
    """Builds the step from its settings; any scorer will do, not only that of `settings.model`."""
    return Step(settings, scorer)
