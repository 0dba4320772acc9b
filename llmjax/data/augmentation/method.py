"""What every method of augmentation is: a pure function of a text and a source of randomness."""

import abc
import random
from collections.abc import Sequence
from typing import Any, ClassVar

from llmjax.data import splits


class Method(abc.ABC):
    """Writes a text anew; methods are frozen dataclasses whose settings are their fields.

    Attributes:
        name: what provenance and tables call the method.
        rate: the share of the places a method could change that it does change, each by a draw of
            its own; which places these are, each method says.
    """

    name: ClassVar[str]
    rate: float

    def __post_init__(self) -> None:
        if not 0 < self.rate <= 1:
            raise ValueError(f"{type(self).__name__}.rate is {self.rate}: use above 0, up to 1.")

    @abc.abstractmethod
    def __call__(self, text: str, rng: random.Random) -> str:
        """The text anew; the text itself where nothing was drawn or nothing fits."""

    def batch(self, texts: Sequence[str], rngs: Sequence[random.Random]) -> list[str]:
        """Each text by its own randomness; what is cheaper together overrides this."""
        return [self(text, rng) for text, rng in zip(texts, rngs, strict=True)]

    def drawn(self, places: Sequence[Any], rng: random.Random) -> list[Any]:
        """The places that the rate's draws fall on, in order: as many draws as places."""
        return [place for place in places if rng.random() < self.rate]


def generator(text: str, seed: int = 0, copy: int = 0) -> random.Random:
    """The randomness of one copy of a text, whatever other texts there are and in which order."""
    return random.Random(splits.draw(f"{copy} {text}", seed))


def augment(text: str, method: Method, *, seed: int = 0, copy: int = 0) -> str:
    """Writes a text anew.

    Args:
        text: any.
        method: how.
        seed: of the draws, 0 or more; equal arguments give equal texts.
        copy: which of several texts made of this one.
    """
    return method(text, generator(text, seed, copy))
