"""Which of the texts that methods write are kept: checks on pairs, and why a text was dropped."""

import dataclasses
from collections.abc import Callable, Sequence
from typing import ClassVar, Protocol

import numpy as np

Label = str | int | None
# Texts to vectors [N, D] of length 1.
Embed = Callable[[Sequence[str]], np.ndarray]
# Texts to the label of each.
Classify = Callable[[Sequence[str]], Sequence[Label]]


@dataclasses.dataclass(frozen=True)
class Pair:
    """A text, what a method made of it, and the label that both should have."""

    text: str
    written: str
    label: Label = None


class Check(Protocol):
    """Looks at many pairs at once, as models are cheaper so.

    Attributes:
        name: of its score in provenance.
        reason: why it drops a text, in the words that reports count by.
    """

    name: ClassVar[str]
    reason: ClassVar[str]

    def __call__(self, pairs: Sequence[Pair]) -> tuple[Sequence[bool], Sequence[float]]:
        """Whether each is kept, and the number that decided."""
        ...


@dataclasses.dataclass(frozen=True)
class LengthRatio:
    """Words of what was written for each word of the text: lost or doubled sentences show.

    Attributes:
        least: the smallest ratio that is kept.
        most: the largest.
    """

    least: float = 0.5
    most: float = 2.0
    name: ClassVar[str] = "length_ratio"
    reason: ClassVar[str] = "length"

    def __post_init__(self) -> None:
        if not 0 <= self.least <= 1 <= self.most:
            raise ValueError(
                f"LengthRatio keeps {self.least} to {self.most}: 1, an equal length, must be within"
            )

    def __call__(self, pairs: Sequence[Pair]) -> tuple[list[bool], list[float]]:
        """By words between white space."""
        ratios = [len(p.written.split()) / max(len(p.text.split()), 1) for p in pairs]
        return [self.least <= ratio <= self.most for ratio in ratios], ratios


@dataclasses.dataclass(frozen=True)
class Similarity:
    """The cosine of both texts' embeddings: whether they still say the same.

    Attributes:
        embed: texts to vectors, an `encoders.Embedder` say.
        least: the smallest cosine that is kept.
    """

    embed: Embed
    least: float = 0.8
    name: ClassVar[str] = "similarity"
    reason: ClassVar[str] = "not similar"

    def __post_init__(self) -> None:
        if not -1 <= self.least <= 1:
            raise ValueError(f"Similarity.least is {self.least}: a cosine is from -1 to 1.")

    def __call__(self, pairs: Sequence[Pair]) -> tuple[list[bool], list[float]]:
        """By one call of the embedder."""
        vectors = self.embed([p.text for p in pairs] + [p.written for p in pairs])
        cosines = (vectors[: len(pairs)] * vectors[len(pairs) :]).sum(axis=1)
        return [bool(cosine >= self.least) for cosine in cosines], [float(c) for c in cosines]


@dataclasses.dataclass(frozen=True)
class LabelAgreement:
    """Whether a classifier gives what was written the example's label.

    Attributes:
        classify: texts to labels. Where an example has none, that of its own text counts.
        labels: names by number, for examples whose label is the number of one.
    """

    classify: Classify
    labels: Sequence[str] = ()
    name: ClassVar[str] = "label_agreement"
    reason: ClassVar[str] = "another label"

    def __call__(self, pairs: Sequence[Pair]) -> tuple[list[bool], list[float]]:
        """The score is 1 where they agree and 0 where they do not."""
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
    """What became of a pair: "" for `dropped` if it is kept, and the scores that it got."""

    dropped: str
    scores: dict[str, float]


def judge(pairs: Sequence[Pair], checks: Sequence[Check] = ()) -> list[Judgement]:
    """Takes pairs through checks, in order, each until one drops it.

    A text that came out as it went in is dropped before: "unchanged".
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
