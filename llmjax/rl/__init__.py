"""Reinforcement learning: rollouts, rewards, advantages, and batches to train a policy on."""

from llmjax.rl.advantages import (
    discounted_returns,
    gae,
    group_advantages,
    informative,
    whiten,
)
from llmjax.rl.estimates import Players
from llmjax.rl.experience import Experience, require_fits
from llmjax.rl.guards import Guard, GuardConfig
from llmjax.rl.judges import ModelReward
from llmjax.rl.kl import KLConfig, next_coefficient, penalized_rewards
from llmjax.rl.learning import Credit, LearningConfig, Memory, learn
from llmjax.rl.rewards import Reward, Scores, WeightedReward, load_function, score
from llmjax.rl.rollouts import RolloutConfig, Writer
from llmjax.rl.samples import Prompt, Sample, repetition
from llmjax.rl.scores import RunningMoments, ScoreConfig, normalize_scores

__all__ = [
    "Credit",
    "Experience",
    "Guard",
    "GuardConfig",
    "KLConfig",
    "LearningConfig",
    "Memory",
    "ModelReward",
    "Players",
    "Prompt",
    "Reward",
    "RolloutConfig",
    "RunningMoments",
    "Sample",
    "ScoreConfig",
    "Scores",
    "WeightedReward",
    "Writer",
    "discounted_returns",
    "gae",
    "group_advantages",
    "informative",
    "learn",
    "load_function",
    "next_coefficient",
    "normalize_scores",
    "penalized_rewards",
    "repetition",
    "require_fits",
    "score",
    "whiten",
]
