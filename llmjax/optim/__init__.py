"""Optimizers: optax chains by path rules."""

from llmjax.optim.config import OptimizerConfig
from llmjax.optim.optimizer import make, schedule

__all__ = ["OptimizerConfig", "make", "schedule"]
