"""Evaluation of trained models on held-out data."""

from llmjax.evaluation.classification import (
    Confusion,
    evaluate_classification,
    evaluate_spans,
)
from llmjax.evaluation.masked import evaluate_mlm, evaluate_rtd
from llmjax.evaluation.perplexity import evaluate
from llmjax.evaluation.reward import RewardReport, evaluate_reward
from llmjax.evaluation.summary import (
    Comparison,
    Summary,
    compare,
    comparison_table,
    fold_overlap,
    fold_table,
    summarize,
)
from llmjax.evaluation.sums import evaluate_means
from llmjax.evaluation.texts import TextScorer

__all__ = [
    "Comparison",
    "Confusion",
    "RewardReport",
    "Summary",
    "TextScorer",
    "compare",
    "comparison_table",
    "evaluate",
    "evaluate_classification",
    "evaluate_means",
    "evaluate_mlm",
    "evaluate_reward",
    "evaluate_rtd",
    "evaluate_spans",
    "fold_overlap",
    "fold_table",
    "summarize",
]
