"""Objectives: pure losses over parameters and a batch, and the masks that they are computed at."""

from llmjax.objectives.classification import (
    ClassificationConfig,
    balanced_weights,
    classification,
)
from llmjax.objectives.clm import clm
from llmjax.objectives.generator import ReplacementConfig, generator_config
from llmjax.objectives.log_probs import LogProbs, log_probs
from llmjax.objectives.loss import Batch, Loss, Metrics, Weighted
from llmjax.objectives.masking import Masked, MaskingConfig, mask_tokens, word_starts
from llmjax.objectives.mlm import MaskedLoss, mlm
from llmjax.objectives.preference import PreferenceConfig, preference
from llmjax.objectives.replacement import gather_positions, sample_replacements
from llmjax.objectives.reward import RewardConfig, ensemble_rewards, reward
from llmjax.objectives.rtd import discriminator_params, generator_params, rtd, rtd_spec

__all__ = [
    "Batch",
    "ClassificationConfig",
    "LogProbs",
    "Loss",
    "Masked",
    "MaskedLoss",
    "MaskingConfig",
    "Metrics",
    "PreferenceConfig",
    "ReplacementConfig",
    "RewardConfig",
    "Weighted",
    "balanced_weights",
    "classification",
    "clm",
    "discriminator_params",
    "ensemble_rewards",
    "gather_positions",
    "generator_config",
    "generator_params",
    "log_probs",
    "mask_tokens",
    "mlm",
    "preference",
    "reward",
    "rtd",
    "rtd_spec",
    "sample_replacements",
    "word_starts",
]
