"""From what answers earn to what a policy is trained with: pure functions of an iteration."""

import dataclasses
import functools
from typing import Any, Literal, get_args

import jax
import jax.numpy as jnp
from flax import struct

from llmjax.checks import require_at_least, require_choices
from llmjax.objectives.divergence import KLEstimator
from llmjax.rl import advantages
from llmjax.rl.kl import KLConfig, next_coefficient, penalized_rewards
from llmjax.rl.scores import RunningMoments, ScoreConfig, normalize_scores


@dataclasses.dataclass(frozen=True)
class LearningConfig:
    """From rewards to batches.

    Attributes:
        advantages: gae, with a critic's values (PPO); or an answer's reward over those of the
            others to its prompt: grpo, dr_grpo, rloo.
        discount: γ of gae.
        decay: λ of gae.
        whiten: of gae, whether advantages have mean 0 and variance 1 over an iteration's tokens.
        epochs: passes over an iteration's rollouts.
        kl: estimator of the divergence that is subtracted from rewards.
        unended: the score of an answer that was cut off before its end, whatever the rewards say;
            None leaves it to them.
        rounds: most times that prompts whose answers all earn the same are replaced by others, of
            which there is something to learn (DAPO's dynamic sampling, Yu et al. 2025, section
            3.2); 0 keeps them. Only where answers are compared.
    """

    advantages: Literal["gae", "grpo", "dr_grpo", "rloo"] = "gae"
    discount: float = 1.0
    decay: float = 0.95
    whiten: bool = True
    epochs: int = 4
    kl: KLEstimator = "k1"
    unended: float | None = None
    rounds: int = 0

    def __post_init__(self) -> None:
        require_choices(self, "learning")
        require_at_least(1, self, "learning", ("epochs",))
        require_at_least(0, self, "learning", ("rounds",))
        for name in ("discount", "decay"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"learning.{name}={getattr(self, name)}: must be in [0, 1]")
        if self.rounds and not self.compares:
            raise ValueError(f"learning.rounds={self.rounds}: answers are not compared by gae")

    @property
    def compares(self) -> bool:
        """Whether an answer is measured by the others to its prompt."""
        return self.advantages in get_args(advantages.Group)


@struct.dataclass
class Memory:
    """What one iteration leaves to the next.

    Attributes:
        coefficient: β of the divergence, float32 scalar.
        moments: of all scores so far.
    """

    coefficient: jax.Array
    moments: RunningMoments

    @classmethod
    def new(cls, kl: KLConfig) -> "Memory":
        """Before the first iteration."""
        return cls(jnp.float32(kl.coefficient), RunningMoments.new())


@functools.partial(jax.jit, static_argnames=("learning", "kl", "scoring", "group"))
def learn(
    rows: dict[str, jax.Array],
    scores: jax.Array,
    memory: Memory,
    *,
    learning: LearningConfig,
    kl: KLConfig,
    scoring: ScoreConfig,
    group: int,
) -> tuple[dict[str, jax.Array], dict[str, jax.Array], Memory]:
    """Advantages of an iteration's answers, and with a critic their returns.

    Args:
        rows: [N, S] each, from `samples.rows`, with "reference_log_probs" where there is a
            reference, and of gae "old_values"; an answer a row, those to one prompt behind each
            other.
        scores: float32 [N], what the answers are worth.
        memory: from the iteration before.
        learning: how.
        kl: how β goes on.
        scoring: what is done to scores first.
        group: answers to a prompt.

    Returns:
        "advantages" and "returns", float32 [N, S], 0 where no action is; what there is to say of
        the divergence from the reference; and what the next iteration needs.
    """
    normal, moments = normalize_scores(scores, memory.moments, scoring)
    actions, ids = rows["targets"] >= 0, rows["segment_ids"]
    rewards = penalized_rewards(
        normal[:, None],
        rows["old_log_probs"],
        rows.get("reference_log_probs", rows["old_log_probs"]),
        actions,
        ids,
        memory.coefficient,
        learning.kl,
    )
    made: dict[str, Any] = {}
    if learning.advantages == "gae":
        found, made["returns"] = advantages.gae(
            rewards,
            rows["old_values"],
            actions,
            ids,
            discount=learning.discount,
            decay=learning.decay,
        )
        if learning.whiten:
            found = advantages.whiten(found, actions)
    else:
        earned = jnp.sum(jnp.where(actions, rewards, 0.0), axis=1).reshape(-1, group)
        by_answer = advantages.group_advantages(earned, learning.advantages).reshape(-1, 1)
        found = jnp.where(actions, by_answer, 0.0)
    made["advantages"] = found
    said = _divergence(rows) | {"kl_coefficient": memory.coefficient}
    coefficient = memory.coefficient
    if "kl_per_response" in said:
        coefficient = next_coefficient(coefficient, said["kl_per_response"], kl)
    return made, said, Memory(coefficient, moments)


def _divergence(rows: dict[str, jax.Array]) -> dict[str, jax.Array]:
    """From the reference, if there is one, in nats: k1, the log-ratio of whole answers."""
    if "reference_log_probs" not in rows:
        return {}
    actions = rows["targets"] >= 0
    apart = jnp.where(actions, rows["old_log_probs"] - rows["reference_log_probs"], 0.0)
    return {
        "kl_per_response": jnp.mean(jnp.sum(apart, axis=1)),
        "kl_per_token": jnp.sum(apart) / jnp.maximum(jnp.sum(actions), 1),
    }
