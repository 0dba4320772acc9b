"""Is there text enough? What sources hold beside what a training reads, and what repeats are worth.

Muennighoff et al. 2023 (arXiv:2305.16264): up to four epochs repeated text is nearly as good as new
text; then each repeat is worth less, and from some 16 on next to nothing.
"""

import dataclasses
import math
from collections.abc import Mapping

EPOCHS = 4.0  # from here on repetition costs
DECAY = 15.387756  # their R*_D: repeats until one is worth 1/e of new text


@dataclasses.dataclass(frozen=True)
class Supply:
    """What a source gives to a training.

    Attributes:
        name: the source's.
        tokens: that it has, U.
        share: of the training's tokens.
        read: tokens of it that the training reads, D.
    """

    name: str
    tokens: float
    share: float
    read: float

    @property
    def epochs(self) -> float:
        """How often it is read: D / U."""
        return self.read / self.tokens if self.tokens else math.inf if self.read else 0.0

    @property
    def worth(self) -> float:
        """Tokens of new text that would teach as much, as `worth` of what is read."""
        return worth(self.tokens, self.read)


def worth(unique: float, read: float) -> float:
    """D' = U + U·R*·(1 - e^(-R/R*)) with R = D/U - 1 repeats, or D where none is (equation 5).

    Args:
        unique: tokens U.
        read: tokens D that are read of them, repeats included.
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
    """Of each source with a share, for a training on so many tokens."""
    return [
        Supply(name, sizes[name], share, share * tokens) for name, share in shares.items() if share
    ]


def enough_for(sizes: Mapping[str, float], shares: Mapping[str, float]) -> float:
    """The most tokens that a training with these shares reads before a source has 4 epochs."""
    return min(EPOCHS * sizes[name] / share for name, share in shares.items() if share)
