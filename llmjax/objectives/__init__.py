"""Objectives: pure loss functions of parameters and a batch, and token masking."""

from llmjax.objectives.classification import (
    ClassificationConfig,
    balanced_weights,
    classification,
)
from llmjax.objectives.clm import clm
from llmjax.objectives.critic import Critic, policy_params
from llmjax.objectives.divergence import entropy, kl_divergence, kl_estimate
from llmjax.objectives.generator import ReplacementConfig, generator_config
from llmjax.objectives.log_probs import LogProbs, log_probs
from llmjax.objectives.loss import Batch, Loss, MeasuredLoss, Metrics, PreparedLoss, Weighted
from llmjax.objectives.masking import Masked, MaskingConfig, mask_tokens, word_starts
from llmjax.objectives.mlm import mlm
from llmjax.objectives.policy import explained_variance, policy
from llmjax.objectives.preference import PreferenceConfig, preference
from llmjax.objectives.replacement import sample_replacements
from llmjax.objectives.reward import RewardConfig, ensemble_rewards, reward
from llmjax.objectives.rtd import discriminator_params, generator_params, rtd, rtd_spec
from llmjax.objectives.segments import at_tokens, segment_sums
from llmjax.objectives.surrogate import PolicyConfig

__all__ = [
    "Batch",
    "ClassificationConfig",
    "Critic",
    "LogProbs",
    "Loss",
    "Masked",
    "MaskingConfig",
    "MeasuredLoss",
    "Metrics",
    "PolicyConfig",
    "PreferenceConfig",
    "PreparedLoss",
    "ReplacementConfig",
    "RewardConfig",
    "Weighted",
    "at_tokens",
    "balanced_weights",
    "classification",
    "clm",
    "discriminator_params",
    "ensemble_rewards",
    "entropy",
    "explained_variance",
    "generator_config",
    "generator_params",
    "kl_divergence",
    "kl_estimate",
    "log_probs",
    "mask_tokens",
    "mlm",
    "policy",
    "policy_params",
    "preference",
    "reward",
    "rtd",
    "rtd_spec",
    "sample_replacements",
    "segment_sums",
    "word_starts",
]
