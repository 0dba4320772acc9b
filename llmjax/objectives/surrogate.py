"""The losses of PPO and its successors, token by token."""

import dataclasses
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp

from llmjax.checks import require_at_least, require_choices
from llmjax.objectives.divergence import KLEstimator, importance

Aggregation = Literal["token", "sequence", "constant"]


@dataclasses.dataclass(frozen=True)
class PolicyConfig:
    """How rollouts become a loss. The defaults are PPO's; other methods are fields of it.

    GRPO (Shao et al. 2024): aggregation sequence, kl_coefficient 0.04. DAPO (Yu et al. 2025):
    clip_high 0.28. Dr. GRPO (Liu et al. 2025): aggregation constant. GSPO (Zheng et al. 2025):
    ratio sequence, aggregation sequence, clip_low 3e-4, clip_high 4e-4.

    Attributes:
        clip_low: ratios below 1 - this gain nothing more by falling.
        clip_high: ratios above 1 + this gain nothing more by rising.
        dual_clip: c: a token with advantage A < 0 costs c·|A| at most (Ye et al. 2020, equation 5);
            0 sets no bound, 3 is usual.
        ratio: of a token's probabilities, or of a whole response's to the power 1/|y| (GSPO,
            equation 7).
        kl: the estimator of the divergence from the reference (`kl_estimate`).
        kl_coefficient: its weight in the loss; 0 where rewards pay for it.
        entropy_coefficient: weight of the entropy, which is subtracted.
        aggregation: token: all tokens of the batch count the same (DAPO, equation 8). sequence: all
            responses do, and the tokens within each (GRPO, equation 3). constant: the sum over a
            response's tokens by `max_length` (Dr. GRPO, section 3.2).
        max_length: of constant: what lengths are divided by, the most tokens of a response say.
        temperature: at which the rollouts were sampled: log-probabilities are those there.
        value_coefficient: weight of the critic's loss.
        value_clip: how far a value may usefully move from the old one; 0 sets no bound.
        pretrain_coefficient: weight of -log P of pretraining text (PPO-ptx: Ouyang et al. 2022,
            equation 2).
    """

    clip_low: float = 0.2
    clip_high: float = 0.2
    dual_clip: float = 0.0
    ratio: Literal["token", "sequence"] = "token"
    kl: KLEstimator = "k3"
    kl_coefficient: float = 0.0
    entropy_coefficient: float = 0.0
    aggregation: Aggregation = "token"
    max_length: int = 0
    temperature: float = 1.0
    value_coefficient: float = 0.5
    value_clip: float = 0.2
    pretrain_coefficient: float = 0.0

    def __post_init__(self) -> None:
        require_choices(self, "policy")
        coefficients = ("kl_coefficient", "value_coefficient", "pretrain_coefficient")
        require_at_least(0, self, "policy", ("clip_low", "clip_high", "value_clip", *coefficients))
        if self.clip_low >= 1:
            raise ValueError(f"policy.clip_low={self.clip_low}: ratios are above 0; give below 1")
        if self.dual_clip and self.dual_clip <= 1:
            raise ValueError(
                f"policy.dual_clip={self.dual_clip}: must be above 1, or 0 for no bound"
            )
        if (self.aggregation == "constant") != bool(self.max_length) or self.max_length < 0:
            raise ValueError(
                f"policy.max_length={self.max_length} with aggregation={self.aggregation}: "
                "aggregation constant divides by it, and no other has one"
            )
        if not self.temperature > 0:
            raise ValueError(
                f"policy.temperature={self.temperature}: must be above 0; greedy decoding has no "
                "probabilities to learn from"
            )


class Surrogate(NamedTuple):
    """The clipped loss of each token, and which bound cuts off its gradient.

    Attributes:
        losses: the negated objective.
        low: the ratio is below the lower bound, and the advantage negative.
        high: the ratio is above the upper bound, and the advantage positive.
        dual: the dual clip bounds the loss.
    """

    losses: jax.Array
    low: jax.Array
    high: jax.Array
    dual: jax.Array


def clipped_surrogate(
    log_ratios: jax.Array, advantages: jax.Array, settings: PolicyConfig
) -> Surrogate:
    """-min(r A, clip(r, 1 - low, 1 + high) A) (Schulman et al. 2017, equation 7).

    Args:
        log_ratios: log r = log π - log π_old, any shape.
        advantages: A, of the same.
        settings: bounds.
    """
    ratios = importance(log_ratios)
    lowest, highest = 1 - settings.clip_low, 1 + settings.clip_high
    bounded = jnp.clip(ratios, lowest, highest)
    objective = jnp.minimum(ratios * advantages, bounded * advantages)
    negative = advantages < 0
    dual = jnp.zeros_like(negative)
    if settings.dual_clip:
        least = settings.dual_clip * advantages
        dual = negative & (objective < least)
        objective = jnp.where(negative, jnp.maximum(objective, least), objective)
    low, high = negative & (ratios < lowest), (advantages > 0) & (ratios > highest)
    return Surrogate(-objective, low, high, dual)


def clipped_value_loss(
    values: jax.Array, old_values: jax.Array | None, returns: jax.Array, clip: float
) -> tuple[jax.Array, jax.Array]:
    """½ max((V - R)², (V_old + clip(V - V_old) - R)²), of each token, and whether the second won.

    As in the code of Schulman et al. (2017) and in Ouyang et al. (2022); a value that has moved by
    more than `clip` towards its return has no gradient.

    Args:
        values: V, any shape.
        old_values: V_old, those of the rollout; only read where there is a bound.
        returns: R.
        clip: the bound; 0 sets none.
    """
    losses = (values - returns) ** 2
    if not clip or old_values is None:
        return 0.5 * losses, jnp.zeros_like(losses, dtype=bool)
    moved = old_values + jnp.clip(values - old_values, -clip, clip)
    bounded = (moved - returns) ** 2
    return 0.5 * jnp.maximum(losses, bounded), bounded > losses
