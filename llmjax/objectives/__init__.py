"""Objectives: pure losses over parameters and a batch, and the masks that they are computed at."""

from llmjax.objectives.clm import clm
from llmjax.objectives.loss import Batch, Loss, Metrics, Weighted
from llmjax.objectives.masking import Masked, MaskingConfig, mask_tokens, word_starts
from llmjax.objectives.replacement import gather_positions, sample_replacements

__all__ = [
    "Batch",
    "Loss",
    "Masked",
    "MaskingConfig",
    "Metrics",
    "Weighted",
    "clm",
    "gather_positions",
    "mask_tokens",
    "sample_replacements",
    "word_starts",
]
