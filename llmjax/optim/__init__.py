"""Optimizers: optax chains with rules by parameter path."""

from llmjax.optim.config import OptimizerConfig
from llmjax.optim.optimizer import make, schedule
from llmjax.optim.rules import Rule
from llmjax.optim.suggested import suggested, warn_if_far

__all__ = ["OptimizerConfig", "Rule", "make", "schedule", "suggested", "warn_if_far"]
