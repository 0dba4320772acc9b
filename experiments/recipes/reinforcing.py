"""Recipes of reinforcement learning, with the settings of the papers where these are given."""

import dataclasses

from experiments.tasks.reinforcing import Reinforcing, RewardSource
from llmjax.data.config import ExampleConfig
from llmjax.objectives import PolicyConfig
from llmjax.optim import OptimizerConfig
from llmjax.rl import KLConfig, LearningConfig, RolloutConfig


def ppo() -> Reinforcing:
    """PPO with the losses and clips of InstructGPT (Ouyang et al. 2022, appendix C.4).

    For small runs, rollouts are used for four epochs instead of one, and β is 0.05 instead of 0.02.
    Needs base, rewards and prompts.
    """
    return Reinforcing(
        name="ppo",
        critic="model",
        rollouts=RolloutConfig(prompts=64, max_new_tokens=64),
        learning=LearningConfig("gae", epochs=4),
        policy=PolicyConfig(clip_low=0.2, clip_high=0.2, value_clip=0.2, value_coefficient=0.1),
        kl=KLConfig(coefficient=0.05),
        batch_size=32,
        optimizer=_constant(1e-5),
        evaluate_every=40,
        checkpoint_every=40,
    )


def friendlier() -> Reinforcing:
    """The quickstart's model learns replies that `friendly` prefers; two minutes on two cores.

    Answers to held-out prompts are judged by a sentiment lexicon rated by people, from -1 to 1:
    0.12 before training and 0.55 after 64 steps (prompts of up to 64 tokens).
    """
    return Reinforcing(
        name="friendlier",
        base="runs/small_talk",
        corpus="openings",
        data=ExampleConfig(template="speakers", max_length=40),
        rewards=(RewardSource("model", "runs/friendly"),),
        gold=(RewardSource("lexicon", "llmjax.rl.rewards:friendliness"),),
        critic="model",
        critic_base="runs/friendly",
        rollouts=RolloutConfig(prompts=64, max_new_tokens=24),
        learning=LearningConfig("gae", epochs=4),
        policy=PolicyConfig(value_clip=0.2, value_coefficient=0.1),
        kl=KLConfig(coefficient=0.05),
        batch_size=32,
        sequence_length=64,
        steps=80,
        optimizer=_constant(1e-4),
        evaluate_every=16,
        evaluation_prompts=128,
    )


def grpo() -> Reinforcing:
    """GRPO (Shao et al. 2024): advantages relative to other answers, without a critic."""
    return Reinforcing(
        name="grpo",
        rollouts=RolloutConfig(prompts=16, samples=8, max_new_tokens=64),
        learning=LearningConfig("grpo", epochs=1),
        policy=PolicyConfig(aggregation="sequence", kl_coefficient=0.04),
        kl=KLConfig(coefficient=0.0),
        batch_size=32,
        optimizer=_constant(1e-5),
        evaluate_every=40,
        checkpoint_every=40,
    )


def dapo() -> Reinforcing:
    """DAPO (Yu et al. 2025): a higher upper clip, no reference, dynamic sampling of prompts."""
    return dataclasses.replace(
        grpo(),
        name="dapo",
        learning=LearningConfig("grpo", epochs=1, rounds=3),
        policy=PolicyConfig(clip_low=0.2, clip_high=0.28, aggregation="token"),
        kl=KLConfig(coefficient=0.0, watch=False),
    )


def gspo() -> Reinforcing:
    """GSPO (Zheng et al. 2025): the probability ratio of whole answers."""
    policy = PolicyConfig(ratio="sequence", aggregation="sequence", clip_low=3e-4, clip_high=4e-4)
    return dataclasses.replace(grpo(), name="gspo", policy=policy)


def dr_grpo() -> Reinforcing:
    """Dr. GRPO (Liu et al. 2025): no division by lengths or deviations, and no reference."""
    return dataclasses.replace(
        grpo(),
        name="dr_grpo",
        learning=LearningConfig("dr_grpo", epochs=1),
        policy=PolicyConfig(aggregation="constant", max_length=64),
        kl=KLConfig(coefficient=0.0, watch=False),
    )


def rloo() -> Reinforcing:
    """RLOO (Ahmadian et al. 2024): REINFORCE with the mean of the other answers as baseline."""
    return Reinforcing(
        name="rloo",
        rollouts=RolloutConfig(prompts=32, samples=4, max_new_tokens=64),
        learning=LearningConfig("rloo", epochs=1),
        policy=PolicyConfig(aggregation="constant", max_length=64),
        kl=KLConfig(coefficient=0.05),
        batch_size=128,
        optimizer=_constant(1e-5),
        evaluate_every=40,
        checkpoint_every=40,
    )


def _constant(learning_rate: float) -> OptimizerConfig:
    return OptimizerConfig(
        learning_rate=learning_rate,
        schedule="constant",
        warmup_steps=10,
        beta2=0.95,
        weight_decay=0.0,
    )
