"""Rewards: trained models, Python functions, verifiers, and mixtures of them."""

import importlib
import re
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import jax
import numpy as np
from jax.experimental import multihost_utils

from llmjax.data import demos
from llmjax.rl.samples import Sample

Reward = Callable[[Sequence[Sample]], Sequence[float] | np.ndarray]
"""Maps samples to one number each; verifiers return 1 or 0."""


# Numbers with commas between thousands, but not "(3,4)"; a sign after a number is subtraction.
_NUMBER = re.compile(r"(?<!\w)[-+]?(?:(?:\d{1,3}(?:,\d{3})+(?!\d)|\d+)(?:\.\d+)?|\.\d+)")
_MARKS = ".,!?:;()[]{}*\"'"


class WeightedReward(NamedTuple):
    """A part of a mixture."""

    reward: Reward
    weight: float = 1.0


class Scores(NamedTuple):
    """The rewards of samples.

    Attributes:
        total: float32 [N], the weighted sum.
        parts: float32 [N] by name, unweighted.
    """

    total: np.ndarray
    parts: dict[str, np.ndarray]


def score(samples: Sequence[Sample], mixture: Mapping[str, WeightedReward]) -> Scores:
    """The weighted sum of rewards.

    Raises:
        ValueError: there are no rewards, or a reward (it is named) returns the wrong number of
            values, or non-finite ones.
    """
    if not mixture:
        raise ValueError("no reward: name at least one to score samples by")
    parts, shared = {}, jax.process_count() > 1
    for name, (reward, _) in mixture.items():
        given = reward(samples)
        try:
            values = np.asarray(given, np.float32)
        except (TypeError, ValueError) as error:
            raise ValueError(f"reward {name!r} must return numbers: {error}") from error
        if values.shape != (len(samples),):
            raise ValueError(
                f"reward {name!r} returned {values.shape} for {len(samples)} samples: it must "
                "return one number each"
            )
        if not np.isfinite(values).all():
            at = int(np.flatnonzero(~np.isfinite(values))[0])
            raise ValueError(
                f"reward {name!r} returned {values[at]} for {samples[at].text[:200]!r}"
            )
        # A function may return different values on different processes.
        parts[name] = multihost_utils.broadcast_one_to_all(values) if shared else values
    total = sum(weight * parts[name] for name, (_, weight) in mixture.items())
    return Scores(np.asarray(total, np.float32), parts)


def load_function(path: str) -> Reward:
    """Imports the reward `module:function`.

    Raises:
        ValueError: there is no such function.
    """
    name, _, attribute = path.partition(":")
    try:
        found = getattr(importlib.import_module(name), attribute)
    except (ImportError, AttributeError, TypeError, ValueError) as error:
        raise ValueError(
            f"reward {path!r}: {error}; name a Python function as module:function, or the folder "
            "of a reward model's run"
        ) from error
    if not callable(found):
        raise ValueError(f"reward {path!r} is not a function")
    return found


def matches_answer(samples: Sequence[Sample]) -> list[float]:
    """A verifier: 1 if the text's last number is that of the prompt's "answer", else 0.

    If the "answer" has no number, last words are compared.

    Raises:
        ValueError: a prompt has no "answer".
    """
    return [float(_matches(sample)) for sample in samples]


def _matches(sample: Sample) -> bool:
    if "answer" not in sample.prompt.extra:
        raise ValueError(f"the prompt {sample.prompt.text[:200]!r} has no field answer to verify")
    wanted = str(sample.prompt.extra["answer"])
    if (number := _last_number(wanted)) is not None:
        return _last_number(sample.text) == number
    return _last_word(sample.text) == _last_word(wanted)


def _last_number(text: str) -> float | None:
    found = _NUMBER.findall(text)
    return float(found[-1].replace(",", "")) if found else None


def _last_word(text: str) -> str:
    words = text.split()
    return words[-1].strip(_MARKS).lower() if words else ""


def friendliness(samples: Sequence[Sample]) -> list[float]:
    """VADER's sentiment score of answers, in [-1, 1] (Hutto & Gilbert 2014; vaderSentiment).

    Raises:
        ModuleNotFoundError: the package is not installed.
    """
    sentiment = demos.compound()
    return [sentiment(sample.text) for sample in samples]
