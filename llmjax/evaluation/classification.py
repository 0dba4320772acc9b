"""Classification metrics: the confusion matrix and the figures derived from it."""

import dataclasses
import json
import math
import os
import pathlib
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from llmjax.evaluation.sums import sum_up
from llmjax.objectives import Loss

if TYPE_CHECKING:
    from rich.table import Table


@dataclasses.dataclass(frozen=True)
class Confusion:
    """A confusion matrix.

    A quotient with denominator 0 (such as the precision of a label never predicted) is 0.

    Attributes:
        counts: int64 [N, N]; rows are true labels, columns predicted ones.
        names: names of the labels.
    """

    counts: np.ndarray
    names: tuple[str, ...]

    def __post_init__(self) -> None:
        if self.counts.shape != (len(self.names),) * 2:
            raise ValueError(f"{len(self.names)} names for counts of shape {self.counts.shape}")

    @classmethod
    def of(cls, labels: Any, chosen: Any, names: Sequence[str]) -> "Confusion":
        """Counts predictions against labels [...] in [0, N); label -1 is ignored.

        Raises:
            ValueError: a label or a prediction has no name.
        """
        labels, chosen = np.ravel(labels).astype(int), np.ravel(chosen).astype(int)
        pairs = np.stack([labels, chosen])[:, labels >= 0]
        if ((pairs < 0) | (pairs >= len(names))).any():
            raise ValueError(
                f"labels and predictions are {pairs.min()} to {pairs.max()}, but there are "
                f"{len(names)} names: give one for each"
            )
        counts: np.ndarray = np.zeros((len(names),) * 2, np.int64)
        np.add.at(counts, tuple(pairs), 1)
        return cls(counts, tuple(names))

    def __add__(self, other: "Confusion") -> "Confusion":
        return Confusion(self.counts + other.counts, self.names)

    @property
    def support(self) -> np.ndarray:
        """int64 [N]: the number of examples with each label."""
        return self.counts.sum(axis=1)

    @property
    def precision(self) -> np.ndarray:
        """float64 [N]: the share of predictions of a label that are right."""
        return _quotient(np.diag(self.counts), self.counts.sum(axis=0))

    @property
    def recall(self) -> np.ndarray:
        """float64 [N]: the share of examples with a label that are predicted as it."""
        return _quotient(np.diag(self.counts), self.support)

    @property
    def f1(self) -> np.ndarray:
        """float64 [N]: the harmonic mean of precision and recall, 2 TP / (2 TP + FP + FN)."""
        return _quotient(2 * np.diag(self.counts), self.counts.sum(axis=0) + self.support)

    @property
    def accuracy(self) -> float:
        """The share of correct predictions."""
        return float(_quotient(np.trace(self.counts), self.counts.sum()))

    @property
    def macro_f1(self) -> float:
        """The mean F1 of all labels that occur, true or predicted."""
        met = (self.counts.sum(axis=0) + self.support) > 0
        return float(self.f1[met].mean()) if met.any() else 0.0

    @property
    def micro_f1(self) -> float:
        """F1 of the pooled counts; with one label per example it equals the accuracy."""
        right, total = np.trace(self.counts), self.counts.sum()
        return float(_quotient(2 * right, 2 * right + 2 * (total - right)))

    @property
    def matthews(self) -> float:
        """Matthews correlation for any number of labels, R_K (Gorodkin 2004, equation 8).

        1 is perfect and 0 is chance level; 0 too if all true or all predicted labels are the same.
        """
        counts = self.counts.astype(np.float64)
        total, right = counts.sum(), np.trace(counts)
        true, chosen = counts.sum(axis=1), counts.sum(axis=0)
        spread = (total**2 - true @ true) * (total**2 - chosen @ chosen)
        return float((right * total - true @ chosen) / math.sqrt(spread)) if spread > 0 else 0.0

    def metrics(self) -> dict[str, float]:
        """The metrics of a run's log: accuracy, macro_f1, matthews and the number of labels."""
        return {
            "accuracy": self.accuracy,
            "macro_f1": self.macro_f1,
            "matthews": self.matthews,
            "labels": int(self.counts.sum()),
        }

    def table(self, title: str = "") -> "Table":
        """A terminal table with a row per label and the overall figures."""
        from rich.table import Table

        table = Table("label", title=title or None, title_justify="left")
        for name in ("precision", "recall", "F1", "examples"):
            table.add_column(name, justify="right")
        columns = (self.precision, self.recall, self.f1)
        for index, name in enumerate(self.names):
            figures = (f"{column[index]:.4f}" for column in columns)
            table.add_row(name, *figures, f"{self.support[index]:,}")
        table.add_section()
        total = f"{self.counts.sum():,}"
        table.add_row("macro F1", "", "", f"{self.macro_f1:.4f}", total)
        table.add_row("accuracy (micro F1)", "", "", f"{self.accuracy:.4f}", total)
        table.add_row("Matthews correlation", "", "", f"{self.matthews:.4f}", total)
        return table

    def save(self, path: str | os.PathLike[str]) -> None:
        """Writes names and counts as JSON; a run's report reads RUN_DIR/confusion.json."""
        text = json.dumps({"names": self.names, "counts": self.counts.tolist()})
        pathlib.Path(path).write_text(text, "utf-8")


def evaluate_classification(
    loss: Loss,
    params: Any,
    batches: Iterable[Mapping[str, np.ndarray]],
    names: Sequence[str] = (),
) -> tuple[dict[str, float], Confusion]:
    """The mean loss and the confusion matrix over a finite set of batches.

    Args:
        loss: made with `objectives.classification(config, confusion=True)`.
        params: the model's parameters.
        batches: host batches with "labels"; label -1 is ignored, as in rows that fill a batch.
        names: names of the labels; their numbers by default.

    Returns:
        validation_loss (nats per label) with `Confusion.metrics`, and the confusion matrix.

    Raises:
        ValueError: there is no label, or the loss returns no confusion counts.
    """
    found = sum_up(loss, params, batches)
    mean = _mean(found, "labels")
    if "confusion" not in found:
        raise ValueError("the loss returns no confusion counts: make it with confusion=True")
    counts = np.rint(found["confusion"]).astype(np.int64)
    confusion = Confusion(counts, tuple(names) or tuple(map(str, range(len(counts)))))
    return {"validation_loss": mean, **confusion.metrics()}, confusion


def evaluate_spans(
    loss: Loss, params: Any, batches: Iterable[Mapping[str, np.ndarray]]
) -> dict[str, float]:
    """Exact match and token F1 of predicted spans.

    Both compare the model's tokens; SQuAD's own script compares words of the text.

    Args:
        loss: made with `objectives.classification`, for a model with head.kind "span".
        params: the model's parameters.
        batches: host batches with "spans"; -1 for none.

    Returns:
        validation_loss (nats), exact_match, token_f1 and the number of spans.

    Raises:
        ValueError: there is no span.
    """
    found = sum_up(loss, params, batches)
    return {
        "validation_loss": _mean(found, "spans"),
        "exact_match": found["accuracy"] / found["weight"],
        "token_f1": found["token_f1"] / found["weight"],
        "spans": int(found["weight"]),
    }


def _mean(found: Mapping[str, Any], what: str) -> float:
    if not found["weight"]:
        raise ValueError(
            f"nothing to evaluate: the batches have no {what}; give more validation data, or a "
            "larger validation_share"
        )
    return found["sum"] / found["weight"]


def _quotient(numerator: Any, denominator: Any) -> np.ndarray:
    return np.divide(
        numerator, denominator, out=np.zeros(np.shape(numerator)), where=np.asarray(denominator) > 0
    )
