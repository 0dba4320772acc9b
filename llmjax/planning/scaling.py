"""Compute-optimal model size and number of training tokens (Hoffmann et al. 2022).

"Training Compute-Optimal Large Language Models" takes three approaches. Approaches 1 (envelope of
training curves) and 2 (IsoFLOP profiles) give power laws; approach 3 gives a loss law. A budget C
is in training FLOPs, which all three count as 6·N·D.
"""

import dataclasses
import math
from typing import Protocol

FLOPS_PER_PARAM = 6  # per training token: 2 forward, 4 backward (Kaplan et al. 2020, section 2.1)


@dataclasses.dataclass(frozen=True)
class Allocation:
    """A budget, split into model size and training tokens.

    Attributes:
        params: N, model parameters.
        tokens: D, training tokens.
    """

    params: float
    tokens: float

    @property
    def flops(self) -> float:
        """6·N·D."""
        return FLOPS_PER_PARAM * self.params * self.tokens


class Law(Protocol):
    """A rule for spending a budget."""

    def optimal(self, flops: float) -> Allocation:
        """The best model size and token count for a budget."""
        ...

    def optimal_for(self, params: float) -> Allocation:
        """The token count for which this model size is compute-optimal."""
        ...


@dataclasses.dataclass(frozen=True)
class Frontier:
    """Optimal sizes as a power law of the budget: N = k·Cᵃ and D = C / 6N.

    Attributes:
        coefficient: k, parameters at a budget of one FLOP.
        exponent: a; the exponent of the tokens, b, is 1 - a.
    """

    coefficient: float
    exponent: float

    def __post_init__(self) -> None:
        if not (self.coefficient > 0 and 0 < self.exponent < 1):
            raise ValueError(
                f"Frontier({self.coefficient}, {self.exponent}): the coefficient must be above 0, "
                "the exponent in (0, 1)"
            )

    def optimal(self, flops: float) -> Allocation:
        """The best model size and token count for a budget.

        Raises:
            ValueError: `flops` is not positive and finite.
        """
        params = self.coefficient * _positive("flops", flops) ** self.exponent
        return Allocation(params, flops / (FLOPS_PER_PARAM * params))

    def optimal_for(self, params: float) -> Allocation:
        """The token count for which this model size is compute-optimal.

        Raises:
            ValueError: `params` is not positive and finite.
        """
        flops = (_positive("params", params) / self.coefficient) ** (1 / self.exponent)
        return Allocation(params, flops / (FLOPS_PER_PARAM * params))


@dataclasses.dataclass(frozen=True)
class LossLaw:
    """L(N, D) = E + A/Nᵅ + B/Dᵝ, in nats per token (Hoffmann et al. 2022, equation 2).

    Attributes:
        E: irreducible loss, the entropy of the text.
        A: scale of the term for finite model size.
        B: scale of the term for finite data.
        alpha: α.
        beta: β.
    """

    E: float
    A: float
    B: float
    alpha: float
    beta: float

    def __post_init__(self) -> None:
        for name, value in dataclasses.asdict(self).items():
            if not (value > 0 or (name == "E" and value == 0)):
                raise ValueError(f"LossLaw.{name}={value}: must be above 0")

    def loss(self, params: float, tokens: float) -> float:
        """L(N, D)."""
        return self.E + self.A / params**self.alpha + self.B / tokens**self.beta

    def frontier(self) -> Frontier:
        """The minima of L at equal FLOPs: G·(C/6)ᵃ (Hoffmann et al. 2022, equation 4)."""
        total = self.alpha + self.beta
        exponent = self.beta / total
        scale = (self.alpha * self.A / (self.beta * self.B)) ** (1 / total)
        return Frontier(scale / FLOPS_PER_PARAM**exponent, exponent)

    def optimal(self, flops: float) -> Allocation:
        """The best model size and token count for a budget."""
        return self.frontier().optimal(flops)

    def optimal_for(self, params: float) -> Allocation:
        """The token count for which this model size is compute-optimal."""
        return self.frontier().optimal_for(params)

    def cheapest(self, loss: float) -> Allocation:
        """The smallest budget that reaches a loss, where αA/Nᵅ = βB/Dᵝ.

        Raises:
            ValueError: no budget reaches this loss.
        """
        if not loss > self.E:
            raise ValueError(f"loss={loss}: no model gets below E = {self.E:.4g}")
        params = (self.A * (1 + self.alpha / self.beta) / (loss - self.E)) ** (1 / self.alpha)
        return self.optimal_for(params)

    def tokens_for(self, params: float, loss: float) -> float:
        """D with L(N, D) = loss; infinite if a model of this size never reaches it."""
        rest = loss - self.E - self.A / params**self.alpha
        return (self.B / rest) ** (1 / self.beta) if rest > 0 else math.inf


# The paper gives exponents to two digits (.50, .49 and .46) and no coefficients, but tables 3 and
# A3. These power laws are least squares fits of their logarithms, without the rows of 67 billion
# (an outlier, see tests/planning/test_scaling.py) and 175 billion (one is misprinted).
APPROACH_1 = Frontier(0.09935, 0.49809)
APPROACH_2 = Frontier(0.14556, 0.48993)
APPROACH_3 = Frontier(0.53770, 0.45864)

# Approach 3, from the paper's source. Its optima are 3 to 7 % below those of table A3. Equation 10
# rounds to 1.69, 406.4, 410.7, 0.34 and 0.28, whose optima are a quarter smaller.
HOFFMANN = LossLaw(
    math.exp(0.5267228), math.exp(6.0073404), math.exp(6.0179186), 0.33917084, 0.2849083
)
ROUNDED = LossLaw(1.69, 406.4, 410.7, 0.34, 0.28)
# The same runs, refitted to convergence: Besiroglu et al. 2024, "Chinchilla Scaling: A replication
# attempt", equation 5. Agrees with approaches 1 and 2: about 20 tokens per parameter.
BESIROGLU = LossLaw(1.8172, 482.01, 2085.43, 0.3478, 0.3658)


@dataclasses.dataclass(frozen=True)
class Overtraining:
    """A model smaller than the compute-optimal one, and its price.

    Attributes:
        params: model parameters.
        tokens: training tokens within the budget.
        loss: after those tokens.
        penalty: excess over the best loss for the budget.
        tokens_to_match: tokens until it reaches the best loss; infinite if it never does.
        extra: training FLOPs for that, relative to the budget; every use then costs less (N).
    """

    params: float
    tokens: float
    loss: float
    penalty: float
    tokens_to_match: float
    extra: float


def overtrain(law: LossLaw, flops: float, params: float) -> Overtraining:
    """Compares a model of another size with the best one, at equal cost and at equal loss.

    Args:
        law: the loss law.
        flops: the budget.
        params: model size, usually below `law.optimal(flops).params`.

    Raises:
        ValueError: `flops` or `params` is not positive and finite.
    """
    best = law.optimal(flops)
    least = law.loss(best.params, best.tokens)
    tokens = flops / (FLOPS_PER_PARAM * _positive("params", params))
    loss = law.loss(params, tokens)
    matching = law.tokens_for(params, least)
    return Overtraining(params, tokens, loss, loss - least, matching, matching / tokens)


def _positive(name: str, value: float) -> float:
    if not (value > 0 and math.isfinite(value)):
        raise ValueError(f"{name}={value}: must be above 0, and finite")
    return value
