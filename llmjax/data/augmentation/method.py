"""The interface of augmentation methods: a pure function of a text and a random generator."""

import abc
import random
from collections.abc import Sequence
from typing import Any, ClassVar

from llmjax.data import splits


class Method(abc.ABC):
    """Rewrites a text. Methods are frozen dataclasses whose fields are their settings.

    Attributes:
        name: the method's name in provenance and tables.
        rate: share of the places that a method could change that it changes, each decided
            independently; the method defines the places.
    """

    name: ClassVar[str]
    rate: float

    def __post_init__(self) -> None:
        if not 0 < self.rate <= 1:
            raise ValueError(f"{type(self).__name__}.rate is {self.rate}: use above 0, up to 1.")

    @abc.abstractmethod
    def __call__(self, text: str, rng: random.Random) -> str:
        """The rewritten text, or the same text if nothing was drawn or nothing fits."""

    def batch(self, texts: Sequence[str], rngs: Sequence[random.Random]) -> list[str]:
        """Rewrites each text with its own generator; overridden where batching is cheaper."""
        return [self(text, rng) for text, rng in zip(texts, rngs, strict=True)]

    def drawn(self, places: Sequence[Any], rng: random.Random) -> list[Any]:
        """A random subset of the places, in order; draws one number per place."""
        return [place for place in places if rng.random() < self.rate]


def generator(text: str, seed: int = 0, copy: int = 0) -> random.Random:
    """The generator for one copy of a text, independent of all other texts."""
    return random.Random(splits.draw(f"{copy} {text}", seed))


def augment(text: str, method: Method, *, seed: int = 0, copy: int = 0) -> str:
    """Rewrites a text.

    Args:
        text: any text.
        method: the method.
        seed: random seed, 0 or more; equal arguments give equal texts.
        copy: index among several copies of this text.
    """
    return method(text, generator(text, seed, copy))
