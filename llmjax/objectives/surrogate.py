"""Per-token losses of PPO and its successors."""

import dataclasses
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp

from llmjax.checks import require_at_least, require_choices
from llmjax.objectives.divergence import KLEstimator, importance

Aggregation = Literal["token", "sequence", "constant"]


@dataclasses.dataclass(frozen=True)
class PolicyConfig:
    """Options of the policy loss. The defaults are PPO's; fields select other methods.

    GRPO (Shao et al. 2024): aggregation sequence, kl_coefficient 0.04. DAPO (Yu et al. 2025):
    clip_high 0.28. Dr. GRPO (Liu et al. 2025): aggregation constant. GSPO (Zheng et al. 2025):
    ratio sequence, aggregation sequence, clip_low 3e-4, clip_high 4e-4.

    Attributes:
        clip_low: ratios below 1 - clip_low gain nothing from falling further.
        clip_high: ratios above 1 + clip_high gain nothing from rising further.
        dual_clip: c: the loss of a token with advantage A < 0 is at most c·|A| (Ye et al. 2020,
            equation 5); 0 for no bound, 3 is usual.
        ratio: probability ratio of each token, or of the whole response to the power 1/|y| (GSPO,
            equation 7).
        kl: the estimator of the divergence from the reference (`kl_estimate`); in the loss, k2 or
            k3.
        kl_coefficient: its weight in the loss; 0 if it is part of the rewards.
        entropy_coefficient: weight of the entropy, which is subtracted.
        aggregation: token: all tokens of the batch count the same (DAPO, equation 8). sequence: all
            responses count the same, as do the tokens within each (GRPO, equation 3). constant: the
            sum over a response's tokens divided by `max_length` (Dr. GRPO, section 3.2).
        max_length: divisor for aggregation constant, such as the maximum tokens of a response.
        temperature: temperature at which rollouts were sampled, and of all log-probabilities.
        value_coefficient: weight of the critic's loss.
        value_clip: how far a value may move from the old one before its gradient vanishes; 0 for
            no bound.
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
            raise ValueError(
                f"policy.clip_low={self.clip_low}: must be below 1, as ratios are positive"
            )
        if self.dual_clip and self.dual_clip <= 1:
            raise ValueError(
                f"policy.dual_clip={self.dual_clip}: must be above 1, or 0 for no bound"
            )
        if self.kl_coefficient and self.kl == "k1":
            raise ValueError(
                f"policy.kl=k1 with kl_coefficient={self.kl_coefficient}: as a loss its expected "
                "gradient is 0; choose k2 or k3, or subtract it from rewards (kl.coefficient)"
            )
        if (self.aggregation == "constant") != bool(self.max_length) or self.max_length < 0:
            raise ValueError(
                f"policy.max_length={self.max_length} with aggregation={self.aggregation}: "
                "only aggregation constant has, and needs, a max_length above 0"
            )
        if not self.temperature > 0:
            raise ValueError(
                f"policy.temperature={self.temperature}: must be above 0; greedy decoding has no "
                "probabilities to learn from"
            )


class Surrogate(NamedTuple):
    """The clipped loss of each token, and which bound zeroes its gradient.

    Attributes:
        losses: the negated objective.
        low: whether the ratio is below the lower bound and the advantage negative.
        high: whether the ratio is above the upper bound and the advantage positive.
        dual: whether the dual clip bounds the loss.
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
        advantages: A, of the same shape.
        settings: the bounds.
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
    """½ max((V - R)², (V_old + clip(V - V_old) - R)²) per token, and where the second is larger.

    As in the code of Schulman et al. (2017) and in Ouyang et al. (2022). A value that has moved by
    more than `clip` towards its return has no gradient.

    Args:
        values: V, any shape.
        old_values: V_old, the values at rollout time; only read with a bound.
        returns: R.
        clip: the bound; 0 for none.
    """
    losses = (values - returns) ** 2
    if not clip or old_values is None:
        return 0.5 * losses, jnp.zeros_like(losses, dtype=bool)
    moved = old_values + jnp.clip(values - old_values, -clip, clip)
    bounded = (moved - returns) ** 2
    return 0.5 * jnp.maximum(losses, bounded), bounded > losses
