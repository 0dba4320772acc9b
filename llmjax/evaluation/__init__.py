"""Evaluation: what a model has learned, measured on text that it has not seen."""

from llmjax.evaluation.perplexity import evaluate

__all__ = ["evaluate"]
