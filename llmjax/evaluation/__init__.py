"""Evaluation: what a model has learned, measured on text that it has not seen."""

from llmjax.evaluation.masked import evaluate_mlm, evaluate_rtd
from llmjax.evaluation.perplexity import evaluate

__all__ = ["evaluate", "evaluate_mlm", "evaluate_rtd"]
