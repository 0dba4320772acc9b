"""Cross entropy and log-probabilities without B·S×V logits in memory."""

from llmjax.kernels.linear_cross_entropy.api import (
    IGNORE,
    linear_cross_entropy,
    linear_log_probs,
)

__all__ = ["IGNORE", "linear_cross_entropy", "linear_log_probs"]
