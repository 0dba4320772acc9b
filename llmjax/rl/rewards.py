"""What answers are worth: trained models, Python functions, verifiers, and mixtures of them."""

import importlib
import math
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import numpy as np

from llmjax.data import demos
from llmjax.rl.samples import Sample

Reward = Callable[[Sequence[Sample]], Sequence[float] | np.ndarray]
"""Samples to a number for each; a verifier gives 1 and 0."""


class Weighted(NamedTuple):
    """A part of a mixture."""

    reward: Reward
    weight: float = 1.0


class Scores(NamedTuple):
    """What samples are worth.

    Attributes:
        total: float32 [N], the weighted sum.
        parts: float32 [N] by name, without weights.
    """

    total: np.ndarray
    parts: dict[str, np.ndarray]


def score(samples: Sequence[Sample], mixture: Mapping[str, Weighted]) -> Scores:
    """The weighted sum of rewards.

    Raises:
        ValueError: naming the reward: it gives another number of values, or one that is not finite.
    """
    parts = {}
    for name, (reward, _) in mixture.items():
        values = np.asarray(reward(samples), np.float32)
        if values.shape != (len(samples),):
            raise ValueError(
                f"reward {name!r} gave {values.shape} for {len(samples)} samples: it must give a "
                "number for each"
            )
        if not np.isfinite(values).all():
            at = int(np.flatnonzero(~np.isfinite(values))[0])
            raise ValueError(f"reward {name!r} gave {values[at]} for {samples[at].text[:200]!r}")
        parts[name] = values
    total = sum(weight * parts[name] for name, (_, weight) in mixture.items())
    return Scores(np.asarray(total, np.float32), parts)


def load_function(path: str) -> Reward:
    """The reward `module:function`.

    Raises:
        ValueError: there is no such function.
    """
    name, _, attribute = path.partition(":")
    try:
        found = getattr(importlib.import_module(name), attribute)
    except (ImportError, AttributeError, ValueError) as error:
        raise ValueError(
            f"reward {path!r}: {error}; name a Python function as module:function"
        ) from error
    if not callable(found):
        raise ValueError(f"reward {path!r} is no function")
    return found


def matches_answer(samples: Sequence[Sample]) -> list[float]:
    """A verifier: 1 where the last number, or else the last word, is the prompt's "answer"."""
    return [
        float(_last(sample.text) == _last(str(sample.prompt.extra["answer"]))) for sample in samples
    ]


def _last(text: str) -> str:
    words = text.replace(",", "").split()
    for word in reversed(words):
        try:
            number = float(word.strip("$%.!?()[]{}:;=\"'"))
        except ValueError:
            continue
        if math.isfinite(number):
            return repr(number)
    return words[-1].strip(".!?:;\"'").lower() if words else ""


def friendliness(samples: Sequence[Sample]) -> list[float]:
    """VADER's sentiment of answers, in [-1, 1] (Hutto & Gilbert 2014; package vaderSentiment).

    Raises:
        ModuleNotFoundError: the package is not installed.
    """
    sentiment = demos.compound()
    return [sentiment(sample.text) for sample in samples]
