"""Compares the tokens in each source with the tokens that a run reads, and values repetition.

Muennighoff et al. 2023 (arXiv:2305.16264): up to four epochs, repeated text is nearly as good as
new text. After that each repetition is worth less, and beyond about 16 next to nothing.
"""

import dataclasses
import math
from collections.abc import Mapping

EPOCHS = 4.0  # repetition costs beyond this
DECAY = 15.387756  # their R*_D: repetitions until one is worth 1/e of new text


@dataclasses.dataclass(frozen=True)
class Supply:
    """What a source contributes to a training run.

    Attributes:
        name: the source's name.
        tokens: U, tokens in the source.
        share: its fraction of the training tokens.
        read: D, tokens that the run reads from it.
    """

    name: str
    tokens: float
    share: float
    read: float

    @property
    def epochs(self) -> float:
        """Passes over the source: D / U."""
        return self.read / self.tokens if self.tokens else math.inf if self.read else 0.0

    @property
    def worth(self) -> float:
        """The number of new tokens that would teach as much as the tokens read."""
        return worth(self.tokens, self.read)


def worth(unique: float, read: float) -> float:
    """D' = U + U·R*·(1 - e^(-R/R*)) with R = D/U - 1 repetitions, or D if R <= 0 (equation 5).

    Args:
        unique: U, tokens in the source.
        read: D, tokens read from it, repetitions included.
    """
    if read <= unique:
        return read
    if not unique:
        return 0.0
    repeats = read / unique - 1
    return unique * (1 + DECAY * -math.expm1(-repeats / DECAY))


def supplies(
    sizes: Mapping[str, float], shares: Mapping[str, float], tokens: float
) -> list[Supply]:
    """The supply of each source with a nonzero share, for a run of `tokens` tokens."""
    return [
        Supply(name, sizes[name], share, share * tokens) for name, share in shares.items() if share
    ]


def enough_for(sizes: Mapping[str, float], shares: Mapping[str, float]) -> float:
    """The most tokens that a run can read before a source exceeds 4 epochs."""
    return min(EPOCHS * sizes[name] / share for name, share in shares.items() if share)
