"""From rewards to advantages and returns: pure functions of an iteration."""

import dataclasses
import functools
from typing import Any, Literal, NamedTuple, get_args

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
    """How rewards become advantages and batches.

    Attributes:
        advantages: gae, with a critic's values (PPO); or relative to the other answers to the same
            prompt: grpo, dr_grpo, rloo.
        discount: γ of gae.
        decay: λ of gae.
        whiten: of gae, whether advantages are normalized to mean 0 and variance 1 over an
            iteration's tokens.
        epochs: passes over an iteration's rollouts.
        kl: estimator of the divergence that is subtracted from rewards.
        unended: score of answers that were cut off before their end, instead of their rewards; None
            uses the rewards.
        rounds: maximum number of times that prompts whose answers all score the same are replaced
            (DAPO's dynamic sampling, Yu et al. 2025, section 3.2); 0 keeps them. Only with
            advantages that compare answers.
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
            if self.compares and getattr(self, name) != getattr(LearningConfig, name):
                raise ValueError(
                    f"learning.{name}={getattr(self, name)}: only for gae; {self.advantages} has "
                    "one advantage per answer"
                )
        if self.rounds and not self.compares:
            raise ValueError(f"learning.rounds={self.rounds}: gae does not compare answers")

    @property
    def compares(self) -> bool:
        """Whether advantages are relative to the other answers to the prompt."""
        return self.advantages in get_args(advantages.Group)


class Credit(NamedTuple):
    """Credit assignment: how scores of answers become advantages of their tokens.

    Attributes:
        learning: options of advantages.
        kl: β of the divergence that is subtracted from rewards, and its controller.
        scores: normalization of scores.
    """

    learning: LearningConfig
    kl: KLConfig
    scores: ScoreConfig = ScoreConfig()


@struct.dataclass
class Memory:
    """State that is carried from one iteration to the next.

    Attributes:
        coefficient: β of the divergence, float32 scalar.
        moments: running moments of all scores so far.
    """

    coefficient: jax.Array
    moments: RunningMoments

    @classmethod
    def new(cls, kl: KLConfig) -> "Memory":
        """The state before the first iteration."""
        return cls(jnp.float32(kl.coefficient), RunningMoments.new())


@functools.partial(jax.jit, static_argnames=("credit", "group"))
def learn(
    rows: dict[str, jax.Array], scores: jax.Array, memory: Memory, credit: Credit, *, group: int
) -> tuple[dict[str, jax.Array], dict[str, jax.Array], Memory]:
    """Computes the advantages of an iteration's answers, and with a critic their returns.

    Args:
        rows: each [N, S], from `samples.rows`, with "reference_log_probs" if there is a reference
            and "old_values" for gae; one answer per row, those to a prompt adjacent.
        scores: float32 [N], the scores of the answers.
        memory: from the previous iteration.
        credit: the settings.
        group: answers per prompt.

    Returns:
        "advantages" and "returns", float32 [N, S], 0 outside of actions; metrics of the divergence
        from the reference; and the memory for the next iteration.
    """
    learning = credit.learning
    normal, moments = normalize_scores(scores, memory.moments, credit.scores)
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
        coefficient = next_coefficient(coefficient, said["kl_per_response"], credit.kl)
    return made, said, Memory(coefficient, moments)


def _divergence(rows: dict[str, jax.Array]) -> dict[str, jax.Array]:
    """The divergence from the reference, if there is one, in nats, by k1 over whole answers."""
    if "reference_log_probs" not in rows:
        return {}
    actions = rows["targets"] >= 0
    apart = jnp.where(actions, rows["old_log_probs"] - rows["reference_log_probs"], 0.0)
    return {
        "kl_per_response": jnp.mean(jnp.sum(apart, axis=1)),
        "kl_per_token": jnp.sum(apart) / jnp.maximum(jnp.sum(actions), 1),
    }
