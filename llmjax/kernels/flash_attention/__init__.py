"""Attention without S×T arrays in memory."""

from llmjax.kernels.flash_attention.api import flash_attention, flash_attention_with_log_sum
from llmjax.kernels.flash_attention.mask import Mask
from llmjax.kernels.flash_attention.ring import balance, restore

__all__ = ["Mask", "balance", "flash_attention", "flash_attention_with_log_sum", "restore"]
