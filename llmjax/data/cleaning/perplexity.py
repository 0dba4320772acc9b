"""Documents that a language model finds too strange, or too easy.

Wenzek et al. 2020, "CCNet: Extracting High Quality Monolingual Datasets from Web Crawl Data"
(arXiv:1911.00359): the perplexity under a model of good text tells documents like that from others.
What is easiest is no use either: of thirds of a corpus the middle one taught most (Marion et al.
2023, "When Less is More", arXiv:2309.04564). Hence two bounds.
"""

import dataclasses
import math
from collections.abc import Callable, Iterable, Sequence
from typing import ClassVar

from llmjax.data.cleaning.document import Document, Rejected
from llmjax.data.cleaning.rules import judge, require_ranges

# Perplexities of texts: `llmjax.evaluation.TextScorer` is one, under a model of ours. What has a
# `fingerprint`, a text, says by it whether its model is still the same.
Scorer = Callable[[Sequence[str]], Iterable[float]]


@dataclasses.dataclass(frozen=True)
class Perplexity:
    """Which perplexities are kept, and whose.

    Attributes:
        model: the folder of the run whose model is asked.
        minimum: below it a text is too easy.
        maximum: above it a text is too strange. Both depend on the model and its tokenizer: take
            them from percentiles over a sample, CCNet's code by language the 30th and the 60th.
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
    """Keeps the documents within bounds, and their `perplexity` with them.

    Attributes:
        settings: the bounds.
        scorer: gives the perplexities of texts, several at a time.
    """

    name: ClassVar[str] = Perplexity.name

    settings: Perplexity
    scorer: Scorer

    def __call__(self, document: Document) -> Document | Rejected:
        """The document, or why it is not kept."""
        return self.batch([document])[0]

    def batch(self, documents: Sequence[Document]) -> list[Document | Rejected]:
        """What becomes of each of several documents; the scorer is asked once."""
        texts = [document.text.encode("utf-8", "replace").decode() for document in documents]
        scores = self.scorer(texts)
        return [self._judged(*pair) for pair in zip(documents, scores, strict=True)]

    def _judged(self, document: Document, score: float) -> Document | Rejected:
        if math.isnan(score):
            raise ValueError("the scorer gave nan for a perplexity: its model is broken")
        low, high = score < self.settings.minimum, score > self.settings.maximum
        if math.isfinite(score):
            document = document.with_metadata(perplexity=float(f"{score:.6g}"))
        return judge(document, [("too easy", score, low), ("too strange", score, high)])


def fingerprint(scorer: Scorer | None) -> str:
    """What a scorer says of its model, "" if it says nothing."""
    return str(getattr(scorer, "fingerprint", ""))


def step(settings: Perplexity, scorer: Scorer) -> Step:
    """The step of these settings; the scorer is that of `settings.model`, or any other."""
    return Step(settings, scorer)
