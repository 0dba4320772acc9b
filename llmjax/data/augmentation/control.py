"""Quality control: checks on pairs of texts, and the reasons for dropping an augmented text."""

import dataclasses
from collections.abc import Callable, Sequence
from typing import ClassVar, Protocol

import numpy as np

Label = str | int | None
# Texts to unit vectors [N, D].
Embed = Callable[[Sequence[str]], np.ndarray]
# Texts to labels.
Classify = Callable[[Sequence[str]], Sequence[Label]]


@dataclasses.dataclass(frozen=True)
class Pair:
    """A text, its augmented version, and the label that both should have."""

    text: str
    written: str
    label: Label = None


class Check(Protocol):
    """Checks many pairs at once, because that is cheaper with models.

    Attributes:
        name: the name of its score in the provenance.
        reason: why it drops a text; reports count by it.
    """

    name: ClassVar[str]
    reason: ClassVar[str]

    def __call__(self, pairs: Sequence[Pair]) -> tuple[Sequence[bool], Sequence[float]]:
        """Whether each pair is kept, and the score that decided it."""
        ...


@dataclasses.dataclass(frozen=True)
class LengthRatio:
    """Number of words relative to the original, which exposes lost or duplicated sentences.

    Attributes:
        least: minimum ratio.
        most: maximum ratio.
    """

    least: float = 0.5
    most: float = 2.0
    name: ClassVar[str] = "length_ratio"
    reason: ClassVar[str] = "length"

    def __post_init__(self) -> None:
        if not 0 <= self.least <= 1 <= self.most:
            raise ValueError(
                f"LengthRatio keeps {self.least} to {self.most}: the range must include 1"
            )

    def __call__(self, pairs: Sequence[Pair]) -> tuple[list[bool], list[float]]:
        """Counts words separated by white space."""
        ratios = [len(p.written.split()) / max(len(p.text.split()), 1) for p in pairs]
        return [self.least <= ratio <= self.most for ratio in ratios], ratios


@dataclasses.dataclass(frozen=True)
class Similarity:
    """Cosine similarity of the texts' embeddings, a measure of whether the meaning is the same.

    Attributes:
        embed: texts to vectors, such as an `encoders.Embedder`.
        least: minimum similarity.
    """

    embed: Embed
    least: float = 0.8
    name: ClassVar[str] = "similarity"
    reason: ClassVar[str] = "low similarity"

    def __post_init__(self) -> None:
        if not -1 <= self.least <= 1:
            raise ValueError(f"Similarity.least is {self.least}: use a cosine from -1 to 1.")

    def __call__(self, pairs: Sequence[Pair]) -> tuple[list[bool], list[float]]:
        """Calls the embedder once."""
        vectors = self.embed([p.text for p in pairs] + [p.written for p in pairs])
        cosines = (vectors[: len(pairs)] * vectors[len(pairs) :]).sum(axis=1)
        return [bool(cosine >= self.least) for cosine in cosines], [float(c) for c in cosines]


@dataclasses.dataclass(frozen=True)
class LabelAgreement:
    """Whether a classifier assigns the example's label to the augmented text.

    Attributes:
        classify: texts to labels. For an example without label, the label of its text counts.
        labels: names by number, for examples whose label is a number.
    """

    classify: Classify
    labels: Sequence[str] = ()
    name: ClassVar[str] = "label_agreement"
    reason: ClassVar[str] = "another label"

    def __call__(self, pairs: Sequence[Pair]) -> tuple[list[bool], list[float]]:
        """The score is 1 if the labels agree, else 0."""
        found = self.classify([p.written for p in pairs])
        bare = [p.text for p in pairs if p.label is None]
        own = iter(self.classify(bare) if bare else ())
        wanted = [next(own) if p.label is None else self._named(p.label) for p in pairs]
        agree = [one == other for one, other in zip(found, wanted, strict=True)]
        return agree, [float(same) for same in agree]

    def _named(self, label: Label) -> Label:
        if isinstance(label, int) and label < len(self.labels):
            return self.labels[label]
        return label


@dataclasses.dataclass(frozen=True)
class Judgement:
    """The outcome of a pair: the reason in `dropped` ("" if kept), and its scores."""

    dropped: str
    scores: dict[str, float]


def judge(pairs: Sequence[Pair], checks: Sequence[Check] = ()) -> list[Judgement]:
    """Applies checks to pairs in order, until one drops the pair.

    A text that did not change is dropped first: "unchanged".
    """
    dropped = ["unchanged" if p.written.split() == p.text.split() else "" for p in pairs]
    scores: list[dict[str, float]] = [{} for _ in pairs]
    for check in checks:
        left = [i for i, reason in enumerate(dropped) if not reason]
        if not left:
            break
        kept, numbers = check([pairs[i] for i in left])
        for i, keep, number in zip(left, kept, numbers, strict=True):
            scores[i][check.name] = round(float(number), 4)
            dropped[i] = "" if keep else check.reason
    return [Judgement(*both) for both in zip(dropped, scores, strict=True)]
