"""Trains a quality model on files of good and bad texts, and evaluates it on held-out texts.

In short:

    good = learned_quality.sample([config.Source("good", "books")])
    bad = learned_quality.sample([config.Source("bad", "crawl.jsonl.zst")])
    model, trial = learned_quality.learn(good.texts, bad.texts)
    model.save("quality.safetensors")

All random choices depend on hashes of the texts: the same texts and settings give the same model,
whatever their order and files.
"""

import collections
import dataclasses
import heapq
import math
from collections.abc import Sequence
from typing import Any, Literal

import numpy as np

from llmjax.data import config, documents, splits
from llmjax.data.cleaning import quality_model, task
from llmjax.data.cleaning.counts import Counts
from llmjax.data.cleaning.document import Rejected, Step, clean, name_of
from llmjax.data.cleaning.extra import needs

Kind = Literal["good", "bad"]

# Digits that a minimum is rounded down to, for use on a command line.
_DIGITS = 6


@dataclasses.dataclass(frozen=True)
class Sample:
    """Texts of one kind.

    Attributes:
        texts: without duplicates, ordered by hash.
        left_out: texts that could not be read or that a step rejected, by reason.
    """

    texts: tuple[str, ...]
    left_out: collections.Counter[str]


@dataclasses.dataclass(frozen=True)
class Threshold:
    """A value of `QualityModel.minimum`, and the share of held-out texts that it keeps.

    Attributes:
        minimum: the lowest score that is kept.
        good: share of good texts kept.
        bad: share of bad texts kept.
    """

    minimum: float
    good: float
    bad: float


@dataclasses.dataclass(frozen=True)
class Trial:
    """How well a model classifies held-out texts.

    Attributes:
        learned: number of training texts of each kind.
        held_out: number of held-out texts of each kind.
        contradictory: texts that are both good and bad, which are left out.
        accuracy: share of texts on the right side of 0.5, averaged over both kinds.
        roc_auc: probability that a good text scores higher than a bad one; ties count half.
        thresholds: one for each requested share, in that order.
    """

    learned: dict[Kind, int]
    held_out: dict[Kind, int]
    contradictory: int
    accuracy: float
    roc_auc: float
    thresholds: tuple[Threshold, ...]

    def as_dict(self) -> dict[str, Any]:
        """The trial as plain values."""
        return dataclasses.asdict(self)


def sample(
    sources: Sequence[config.Source],
    *,
    most: int = 100_000,
    seed: int = 0,
    steps: Sequence[Step] = (),
    advance: documents.Advance = lambda _: None,
) -> Sample:
    """Samples distinct texts from files; holds no more of them than it returns.

    Args:
        sources: sources of the texts.
        most: maximum number of texts.
        seed: random seed, 0 or more.
        steps: cleaning steps that texts pass first, as they will before the model judges them.
        advance: called with the number of bytes read since the last call.

    Raises:
        FileNotFoundError: there is nothing to read at a source's path.
        ValueError: a file's suffix does not name a supported format, or `most` is out of range.
    """
    if most < 1:
        raise ValueError(f"most is {most}: use 1 or more.")
    counts = Counts([name_of(step) for step in steps])
    watched = [task.Watched(name_of(step), step, counts) for step in steps]
    left_out: collections.Counter[str] = collections.Counter()
    drawn: list[tuple[int, str]] = []  # a heap with the highest draw on top
    known: set[int] = set()
    for source in sources:
        for file in documents.find_files(source):
            for item in documents.read(file, source, advance):
                read = item if isinstance(item, documents.Rejected) else clean(item, watched)
                if isinstance(read, documents.Rejected | Rejected):
                    left_out[read.reason] += getattr(read, "count", 1)
                    continue
                rank = splits.draw(_bytes(read.text), seed)
                if rank in known or (len(drawn) == most and rank > -drawn[0][0]):
                    continue
                known.add(rank)
                heapq.heappush(drawn, (-rank, read.text))
                if len(drawn) > most:
                    known.remove(-heapq.heappop(drawn)[0])
    return Sample(tuple(text for _, text in sorted(drawn, reverse=True)), left_out)


def learn(
    good: Sequence[str],
    bad: Sequence[str],
    *,
    held_out: float = 0.1,
    kept: Sequence[float] = (0.5, 0.8, 0.9, 0.95, 0.99),
    of: Kind = "good",
    seed: int = 0,
    ngrams: int = 2,
    features: int = 1 << 18,
    regularization: float = 0.1,
) -> tuple[quality_model.LinearModel, Trial]:
    """Trains a model on some of the texts and evaluates it on the others.

    Args:
        good: distinct wanted texts.
        bad: distinct unwanted texts.
        held_out: share of texts for evaluation, chosen by a hash of each text.
        kept: shares of held-out texts; for each, the trial has the highest minimum that keeps it.
        of: the kind of text that `kept` refers to. If the bad texts are a raw crawl, their share
            tells how much of it will be left.
        seed: random seed, 0 or more.
        ngrams: as for `quality_model.train`.
        features: as for `quality_model.train`.
        regularization: as for `quality_model.train`.

    Raises:
        ValueError: a kind has no text on one side, or an argument is out of range.
        ImportError: scikit-learn is not installed.
    """
    _check(held_out, kept, ngrams, features, regularization)
    both = set(good) & set(bad)
    sides: dict[Kind, tuple[list[str], list[str]]] = {
        "good": _parted("good", [text for text in good if text not in both], held_out, seed),
        "bad": _parted("bad", [text for text in bad if text not in both], held_out, seed),
    }
    model = quality_model.train(
        sides["good"][0],
        sides["bad"][0],
        ngrams=ngrams,
        features=features,
        regularization=regularization,
    )
    scores = {kind: model.scores(unseen) for kind, (_, unseen) in sides.items()}
    trial = Trial(
        learned={kind: len(seen) for kind, (seen, _) in sides.items()},
        held_out={kind: len(unseen) for kind, (_, unseen) in sides.items()},
        contradictory=len(both),
        accuracy=float(np.mean(scores["good"] >= 0.5) + np.mean(scores["bad"] < 0.5)) / 2,
        roc_auc=_roc_auc(scores["good"], scores["bad"]),
        thresholds=tuple(_threshold(scores, of, share) for share in kept),
    )
    return model, trial


def _parted(
    kind: Kind, texts: Sequence[str], share: float, seed: int
) -> tuple[list[str], list[str]]:
    """Splits texts into training and held-out texts."""
    out = splits.random([b"held out " + _bytes(text) for text in texts], share, seed)
    seen = [text for text, is_out in zip(texts, out, strict=True) if not is_out]
    unseen = [text for text, is_out in zip(texts, out, strict=True) if is_out]
    if not seen or not unseen:
        raise ValueError(
            f"of {len(texts)} {kind} texts, {len(seen)} are for training and {len(unseen)} held "
            f"out: give more, or another share than held_out={share:g}."
        )
    return seen, unseen


def _threshold(scores: dict[Kind, np.ndarray], of: Kind, share: float) -> Threshold:
    """The highest minimum, up to rounding, that keeps this share of a kind."""
    ranked = np.sort(scores[of])[::-1]
    least = float(ranked[max(math.ceil(share * len(ranked)), 1) - 1])
    minimum = round(least, _DIGITS)
    if minimum > least:
        minimum = round(minimum - 10**-_DIGITS, _DIGITS)
    good, bad = (float(np.mean(scores[kind] >= minimum)) for kind in ("good", "bad"))
    return Threshold(minimum, good, bad)


def _roc_auc(good: np.ndarray, bad: np.ndarray) -> float:
    with needs("scikit-learn"):
        from sklearn.metrics import roc_auc_score
    labels = np.repeat([1, 0], [len(good), len(bad)])
    return float(roc_auc_score(labels, np.concatenate([good, bad])))


def _check(
    held_out: float, kept: Sequence[float], ngrams: int, features: int, regularization: float
) -> None:
    if not 0 < held_out < 1:
        raise ValueError(f"held_out is {held_out:g}: use a share above 0 and below 1.")
    for share in kept:
        if not 0 < share <= 1:
            raise ValueError(f"kept has {share:g}: use shares above 0, up to 1.")
    for name, value in (("ngrams", ngrams), ("features", features)):
        if value < 1:
            raise ValueError(f"{name} is {value}: use 1 or more.")
    if not 0 < regularization < math.inf:
        raise ValueError(f"regularization is {regularization:g}: use a number above 0.")


def _bytes(text: str) -> bytes:
    return text.encode("utf-8", "surrogatepass")
