"""The recipe of reinforcement learning."""

import dataclasses
import glob
import pathlib
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
    """One reward in a weighted sum.

    Attributes:
        name: its name in metrics.
        source: the folder of a run of `experiments.reward`, or a pattern of several (runs/reward_*)
            to average; or module:function, a function that maps a list of `llmjax.rl.Sample` to one
            number each.
        weight: its weight in the sum.
    """

    name: str
    source: str = ""
    weight: float = 1.0

    def __post_init__(self) -> None:
        require(
            self.name != "" and self.source != "",
            f"rewards: name={self.name!r},source={self.source!r}: give both",
        )

    def folders(self) -> list[pathlib.Path]:
        """The folder of the source's name, or those that match its pattern; none for a function.

        Raises:
            ValueError: no folder matches the pattern.
        """
        path = pathlib.Path(self.source)
        if path.is_dir() or not glob.has_magic(self.source):
            return [path] if path.is_dir() else []
        root = path.absolute().anchor
        found = sorted(pathlib.Path(root).glob(str(path.absolute().relative_to(root))))
        if folders := [folder for folder in found if folder.is_dir()]:
            return folders
        raise ValueError(f"no folder matches {self.source}")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Reinforcing(Tuning):
    """Reinforcement learning of a policy.

    Attributes:
        rewards: the rewards, a weighted sum.
        gold: gold rewards, only computed on held-out prompts, to see whether the policy exploits
            the rewards.
        rollouts: how answers are sampled.
        learning: how rewards become batches.
        policy: the policy loss.
        critic: source of values, which gae needs: none; a separate model, initialized from the
            policy's base; or a head on the policy.
        critic_base: the folder of a reward model's run from which a separate critic is initialized;
            "" for the policy's base.
        kl: weight of the divergence from the reference that is subtracted from rewards.
        scores: normalization of rewards.
        guards: thresholds of alarms.
        pretraining: the folder of prepared text (`experiments.prepare`) that is trained on as well,
            with policy.pretrain_coefficient (PPO-ptx).
        pretraining_rows: its rows in a batch.
        evaluation_prompts: held-out prompts that are answered in an evaluation.
    """

    # The value of a policy loss means nothing, and it may jump.
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
    def row_counts(self) -> dict[str, int]:
        """Answers and pretraining text."""
        return super().row_counts | {"pretraining_rows": self.pretraining_rows}

    @property
    def needs_reference(self) -> bool:
        """Whether the divergence from the reference is penalized, bounded or measured."""
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
        require(
            self.critic == "model" or not self.critic_base,
            f"critic_base={self.critic_base}: critic={self.critic} has no model to initialize from "
            "it; set critic=model, or leave it out",
        )
        for flag, sources in (("rewards", self.rewards), ("gold", self.gold)):
            names = [source.name for source in sources]
            require(
                len(set(names)) == len(names),
                f"{flag}: the names {', '.join(names)} must differ, as metrics are named by them",
            )
        rl.require_fits(self.rollouts, self.learning, self.batch_size)
        require(
            self.evaluation_prompts > 0 and not self.evaluate_batches,
            f"evaluation_prompts={self.evaluation_prompts} and evaluate_batches="
            f"{self.evaluate_batches}: set the former to at least 1, and leave the latter at 0",
        )
        require(
            self.policy.temperature == self.rollouts.temperature,
            f"policy.temperature={self.policy.temperature} and rollouts.temperature="
            f"{self.rollouts.temperature}: they must be equal",
        )
        require(
            bool(self.policy.pretrain_coefficient) == bool(self.pretraining)
            and bool(self.pretraining) == (self.pretraining_rows > 0),
            "policy.pretrain_coefficient, pretraining and pretraining_rows belong together: give "
            "all of them or none",
        )
        require(
            self.dropout == Dropout(),
            "dropout: probability ratios would compare two dropout masks; leave it at 0",
        )
