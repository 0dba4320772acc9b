"""Objectives: pure losses over parameters and a batch."""

from llmjax.objectives.clm import clm
from llmjax.objectives.loss import Batch, Loss, Metrics, Weighted

__all__ = ["Batch", "Loss", "Metrics", "Weighted", "clm"]
