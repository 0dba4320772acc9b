"""Cross entropy without B·S×V logits in memory."""

from llmjax.kernels.linear_cross_entropy.api import IGNORE, linear_cross_entropy

__all__ = ["IGNORE", "linear_cross_entropy"]
