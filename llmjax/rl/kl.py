"""The KL penalty: per-token rewards, and the controller of its coefficient."""

import dataclasses

import jax
import jax.numpy as jnp

from llmjax import mesh
from llmjax.checks import require_at_least
from llmjax.objectives.divergence import KLEstimator, kl_estimate


@dataclasses.dataclass(frozen=True)
class KLConfig:
    """The weight β of the divergence from the reference.

    Attributes:
        coefficient: initial β.
        target: divergence that β is adapted to reach, in nats per response; 0 keeps β fixed.
        rate: gain of the controller on the relative error (Ziegler et al. 2019, section 2.2).
        bound: clips the relative error.
        watch: whether the divergence is measured even if nothing depends on it. If false, such a
            run needs no reference, which saves a copy of the model and a pass over every answer.
    """

    coefficient: float = 0.05
    target: float = 0.0
    rate: float = 0.1
    bound: float = 0.2
    watch: bool = True

    def __post_init__(self) -> None:
        require_at_least(0, self, "kl", ("coefficient", "target", "rate", "bound"))
        if self.target and not self.coefficient:
            raise ValueError(
                f"kl.coefficient=0.0 with target={self.target}: it is adapted by multiplication "
                "and would stay 0; start above 0"
            )
        if self.target and self.rate * self.bound >= 1:
            raise ValueError(
                f"kl.rate={self.rate} with bound={self.bound}: their product must be below 1, or "
                "one step may set the coefficient to 0 or below, where it stays"
            )


def next_coefficient(coefficient: jax.Array, kl: jax.Array, config: KLConfig) -> jax.Array:
    """β of the next batch: β (1 + rate · clip(KL / target - 1, ±bound)).

    The only state of the controller is β itself, which starts at `config.coefficient`.

    Args:
        coefficient: β of this batch.
        kl: the measured divergence, in nats per response.
        config: controller options.
    """
    if not config.target:
        return jnp.asarray(coefficient)
    error = jnp.clip(kl / config.target - 1, -config.bound, config.bound)
    return coefficient * (1 + config.rate * error)


def penalized_rewards(
    scores: jax.Array,
    log_probs: jax.Array,
    reference_log_probs: jax.Array,
    actions: jax.Array,
    segment_ids: jax.Array,
    coefficient: float | jax.Array,
    kind: KLEstimator = "k1",
) -> jax.Array:
    """Rewards of actions: -β KL, plus the score at the last action (Ouyang et al. 2022, eq. 2).

    Args:
        scores: float [B, K], of segments 1 to K of each row.
        log_probs: float [B, S], of the policy that sampled.
        reference_log_probs: float [B, S].
        actions: bool [B, S].
        segment_ids: int32 [B, S].
        coefficient: β.
        kind: the estimator of the divergence.

    Returns:
        [B, S]; 0 outside of actions.
    """
    actions = jnp.asarray(actions)
    apart = jnp.where(actions, jnp.asarray(log_probs) - jnp.asarray(reference_log_probs), 0.0)
    at_last = jnp.zeros_like(apart)
    for index in range(scores.shape[1]):
        theirs = actions & (jnp.asarray(segment_ids) == index + 1)
        places = jnp.broadcast_to(jnp.arange(theirs.shape[1]), theirs.shape)
        places = mesh.place(places, ("batch", "sequence"))
        last = jnp.max(jnp.where(theirs, places, -1), axis=1, keepdims=True)
        at_last += jnp.where(places == last, jnp.asarray(scores)[:, index, None], 0.0)
    return at_last - coefficient * kl_estimate(apart, kind)
