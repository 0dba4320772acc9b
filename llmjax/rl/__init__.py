"""Reinforcement learning: from rewards to what a policy is trained with."""

from llmjax.rl.advantages import (
    discounted_returns,
    gae,
    group_advantages,
    informative,
    whiten,
)
from llmjax.rl.kl import KLConfig, next_coefficient, penalized_rewards
from llmjax.rl.scores import RunningMoments, ScoreConfig, normalize_scores

__all__ = [
    "KLConfig",
    "RunningMoments",
    "ScoreConfig",
    "discounted_returns",
    "gae",
    "group_advantages",
    "informative",
    "next_coefficient",
    "normalize_scores",
    "penalized_rewards",
    "whiten",
]
