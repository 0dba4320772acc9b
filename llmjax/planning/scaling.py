"""How large a model should be, and how long it should be trained (Hoffmann et al. 2022).

"Training Compute-Optimal Large Language Models" answers that three times. Approaches 1 (envelope of
training curves) and 2 (valleys at equal FLOPs) end in power laws, approach 3 in a law of the loss.
A budget C is of training FLOPs, which all of them count as 6·N·D.
"""

import dataclasses
import math
from typing import Protocol

FLOPS_PER_PARAM = 6  # of a training token: 2 forward, 4 backward (Kaplan et al. 2020, section 2.1)
TOKENS_PER_PARAM = (20, 100)  # what is usual: compute-optimal, and small models trained for longer


@dataclasses.dataclass(frozen=True)
class Allocation:
    """A budget, spent.

    Attributes:
        params: N, parameters of the model.
        tokens: D, that it is trained on.
    """

    params: float
    tokens: float

    @property
    def flops(self) -> float:
        """6·N·D."""
        return FLOPS_PER_PARAM * self.params * self.tokens


class Law(Protocol):
    """What says how a budget is best spent."""

    def optimal(self, flops: float) -> Allocation:
        """The model and its tokens for a budget."""
        ...

    def optimal_for(self, params: float) -> Allocation:
        """The tokens for which a model of this size is the best use of the budget."""
        ...


@dataclasses.dataclass(frozen=True)
class Frontier:
    """Optimal sizes as a power law of the budget, N = k·Cᵃ and D = C / 6N.

    Attributes:
        coefficient: k, parameters for one FLOP.
        exponent: a; that of tokens, b, is 1 - a.
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
        """The model and its tokens for a budget.

        Raises:
            ValueError: no budget.
        """
        params = self.coefficient * _positive("flops", flops) ** self.exponent
        return Allocation(params, flops / (FLOPS_PER_PARAM * params))

    def optimal_for(self, params: float) -> Allocation:
        """The tokens for which a model of this size is the best use of the budget.

        Raises:
            ValueError: no parameters.
        """
        flops = (_positive("params", params) / self.coefficient) ** (1 / self.exponent)
        return Allocation(params, flops / (FLOPS_PER_PARAM * params))


@dataclasses.dataclass(frozen=True)
class LossLaw:
    """L(N, D) = E + A/Nᵅ + B/Dᵝ, in nats a token (Hoffmann et al. 2022, equation 2).

    Attributes:
        E: of the text itself, which no model gets below.
        A: of too few parameters.
        B: of too few tokens.
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
        """The minimum of L at equal FLOPs: G·(C/6)ᵃ (Hoffmann et al. 2022, equation 4)."""
        total = self.alpha + self.beta
        exponent = self.beta / total
        scale = (self.alpha * self.A / (self.beta * self.B)) ** (1 / total)
        return Frontier(scale / FLOPS_PER_PARAM**exponent, exponent)

    def optimal(self, flops: float) -> Allocation:
        """The model and its tokens for a budget."""
        return self.frontier().optimal(flops)

    def optimal_for(self, params: float) -> Allocation:
        """The tokens for which a model of this size is the best use of the budget."""
        return self.frontier().optimal_for(params)

    def cheapest(self, loss: float) -> Allocation:
        """The least budget that reaches a loss. There, αA/Nᵅ = βB/Dᵝ.

        Raises:
            ValueError: a loss that no budget reaches.
        """
        if not loss > self.E:
            raise ValueError(f"loss={loss}: no model gets below E = {self.E:.4g}")
        params = (self.A * (1 + self.alpha / self.beta) / (loss - self.E)) ** (1 / self.alpha)
        return self.optimal_for(params)

    def tokens_for(self, params: float, loss: float) -> float:
        """D with L(N, D) = loss; infinite where a model of this size never gets there."""
        rest = loss - self.E - self.A / params**self.alpha
        return (self.B / rest) ** (1 / self.beta) if rest > 0 else math.inf


# Approaches 1 and 2 publish exponents in two digits (.50 and .49) and no coefficients. These are the
# power laws through tables 3 and A3, by least squares on their logarithms without the rows of 67 and
# 175 billion, of which the former are off (tests/planning/test_scaling.py). So is approach 3's.
APPROACH_1 = Frontier(0.09935, 0.49809)
APPROACH_2 = Frontier(0.14556, 0.48993)
APPROACH_3 = Frontier(0.53770, 0.45864)

# Approach 3, from the source of the paper; its equation 10 has 1.69, 406.4, 410.7, 0.34 and 0.28,
# whose optima are a quarter smaller. Its optima are 3 to 7 % below those of table A3.
HOFFMANN = LossLaw(
    math.exp(0.5267228), math.exp(6.0073404), math.exp(6.0179186), 0.33917084, 0.2849083
)
ROUNDED = LossLaw(1.69, 406.4, 410.7, 0.34, 0.28)
# The same runs, fitted until the fit had converged: Besiroglu et al. 2024, "Chinchilla Scaling: A
# replication attempt", equation 5. Agrees with approaches 1 and 2: about 20 tokens a parameter.
BESIROGLU = LossLaw(1.8172, 482.01, 2085.43, 0.3478, 0.3658)


@dataclasses.dataclass(frozen=True)
class Overtraining:
    """A model smaller than the best one, and what that costs.

    Attributes:
        params: its parameters.
        tokens: that the budget trains it on.
        loss: after them.
        penalty: by which that is above the best loss for the budget.
        tokens_to_match: with which it reaches the best loss; infinite if it never does.
        extra: training FLOPs for that, over the budget; what it saves is at each use, N.
    """

    params: float
    tokens: float
    loss: float
    penalty: float
    tokens_to_match: float
    extra: float


def overtrain(law: LossLaw, flops: float, params: float) -> Overtraining:
    """A model of another size at the same cost, and at the same loss, as the best one.

    Args:
        law: of the loss.
        flops: the budget.
        params: of the model, usually fewer than `law.optimal(flops).params`.

    Raises:
        ValueError: no budget or no parameters.
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
