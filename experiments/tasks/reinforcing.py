"""The recipe of reinforcement learning."""

import dataclasses
from typing import Literal

from experiments.recipe import require
from experiments.tasks.tuning import Tuning
from llmjax import rl
from llmjax.models import Dropout
from llmjax.objectives import PolicyConfig
from llmjax.train.early_stopping import EarlyStoppingConfig
from llmjax.train.health import SpikeConfig


@dataclasses.dataclass(frozen=True)
class RewardSource:
    """A part of what answers are worth.

    Attributes:
        name: what metrics call it.
        source: the folder of a run of `experiments.reward`, or a pattern of several (runs/reward_*)
            whose mean it is; or module:function, a function of a list of `llmjax.rl.Sample` that
            gives a number for each.
        weight: of it in the sum.
    """

    name: str
    source: str = ""
    weight: float = 1.0

    def __post_init__(self) -> None:
        require(
            self.name != "" and self.source != "",
            f"rewards: name={self.name!r},source={self.source!r}: give both",
        )


@dataclasses.dataclass(frozen=True, kw_only=True)
class Reinforcing(Tuning):
    """Reinforcement learning of a policy.

    Attributes:
        rewards: what answers are worth, a weighted sum.
        gold: what they are really worth, asked on held-out prompts only, to see whether the policy
            pleases the rewards alone.
        rollouts: how the policy answers.
        learning: from rewards to batches.
        policy: the loss.
        critic: where values come from, which gae needs: none; a model of its own, started from the
            policy's base; or a head on the policy.
        critic_base: the folder of a reward model's run that a critic of its own starts from; "" is
            the policy's base.
        kl: weight of the divergence from the reference that is subtracted from rewards.
        scores: what is done to rewards first.
        guards: when there is an alarm.
        pretraining: the folder of prepared text (`experiments.prepare`) that is learnt beside, with
            policy.pretrain_coefficient (PPO-ptx).
        pretraining_rows: rows of it in a batch.
        evaluation_prompts: held-out prompts that are answered in an evaluation.
    """

    # Losses of policies say nothing by their height, and may jump.
    early_stopping: EarlyStoppingConfig = EarlyStoppingConfig(metric="validation_reward")
    spikes: SpikeConfig = SpikeConfig(sigma=0.0)
    rewards: tuple[RewardSource, ...] = ()
    gold: tuple[RewardSource, ...] = ()
    rollouts: rl.RolloutConfig = rl.RolloutConfig()
    learning: rl.LearningConfig = rl.LearningConfig()
    policy: PolicyConfig = PolicyConfig()
    critic: Literal["none", "model", "head"] = "none"
    critic_base: str = ""
    kl: rl.KLConfig = rl.KLConfig()
    scores: rl.ScoreConfig = rl.ScoreConfig()
    guards: rl.GuardConfig = rl.GuardConfig()
    pretraining: str = ""
    pretraining_rows: int = 0
    evaluation_prompts: int = 64

    @property
    def needs_reference(self) -> bool:
        """Whether the divergence from where the policy began is paid for, bounded or watched."""
        counts = (self.kl.coefficient, self.policy.kl_coefficient, self.guards.kl_budget)
        return self.kl.watch or any(counts)

    def __post_init__(self) -> None:
        super().__post_init__()
        compares = self.learning.compares
        require(
            compares == (self.critic == "none"),
            f"critic={self.critic}: learning.advantages={self.learning.advantages} "
            + ("compares answers and needs none" if compares else "needs values: model or head"),
        )
        rl.require_fits(self.rollouts, self.learning, self.batch_size)
        require(
            self.evaluation_prompts > 0 and not self.evaluate_batches,
            f"evaluation_prompts={self.evaluation_prompts} and evaluate_batches="
            f"{self.evaluate_batches}: the former says how much is evaluated, 1 or more; leave the "
            "latter at 0",
        )
        require(
            self.policy.temperature == self.rollouts.temperature,
            f"policy.temperature={self.policy.temperature} and rollouts.temperature="
            f"{self.rollouts.temperature}: a policy learns at the temperature that it acts at",
        )
        require(
            bool(self.policy.pretrain_coefficient) == bool(self.pretraining)
            and bool(self.pretraining) == (self.pretraining_rows > 0),
            "policy.pretrain_coefficient, pretraining and pretraining_rows belong together: give "
            "all of them or none",
        )
        require(
            self.dropout == Dropout(),
            "dropout: ratios would be of two networks, not of two policies; leave it at 0",
        )
