"""Attention without S×T arrays in memory."""

from llmjax.kernels.flash_attention.api import flash_attention
from llmjax.kernels.flash_attention.mask import Mask

__all__ = ["Mask", "flash_attention"]
