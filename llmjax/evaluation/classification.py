"""How well a model tells labels apart: the confusion matrix, and all that follows from it."""

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
    """How often each label was taken for each.

    A quotient without a denominator (the precision of a label that was never chosen) is 0.

    Attributes:
        counts: int64 [N, N]; the row is the true label, the column the chosen one.
        names: of the labels.
    """

    counts: np.ndarray
    names: tuple[str, ...]

    def __post_init__(self) -> None:
        if self.counts.shape != (len(self.names),) * 2:
            raise ValueError(f"{len(self.names)} names for counts {self.counts.shape}")

    @classmethod
    def of(cls, labels: Any, chosen: Any, names: Sequence[str]) -> "Confusion":
        """Counts labels [...] in [0, N), -1 for none, with what was chosen in their place."""
        labels, chosen = np.ravel(labels).astype(int), np.ravel(chosen).astype(int)
        counts: np.ndarray = np.zeros((len(names),) * 2, np.int64)
        np.add.at(counts, (labels[labels >= 0], chosen[labels >= 0]), 1)
        return cls(counts, tuple(names))

    def __add__(self, other: "Confusion") -> "Confusion":
        return Confusion(self.counts + other.counts, self.names)

    @property
    def support(self) -> np.ndarray:
        """int64 [N]: how many examples have each label."""
        return self.counts.sum(axis=1)

    @property
    def precision(self) -> np.ndarray:
        """float64 [N]: of those taken for a label, the share that have it."""
        return _quotient(np.diag(self.counts), self.counts.sum(axis=0))

    @property
    def recall(self) -> np.ndarray:
        """float64 [N]: of those that have a label, the share taken for it."""
        return _quotient(np.diag(self.counts), self.support)

    @property
    def f1(self) -> np.ndarray:
        """float64 [N]: the harmonic mean of precision and recall, 2 TP / (2 TP + FP + FN)."""
        return _quotient(2 * np.diag(self.counts), self.counts.sum(axis=0) + self.support)

    @property
    def accuracy(self) -> float:
        """The share that are right."""
        return float(_quotient(np.trace(self.counts), self.counts.sum()))

    @property
    def macro_f1(self) -> float:
        """The mean F1 of the labels that are met, true or chosen."""
        met = (self.counts.sum(axis=0) + self.support) > 0
        return float(self.f1[met].mean()) if met.any() else 0.0

    @property
    def micro_f1(self) -> float:
        """F1 of the counts of all labels together; where each example has one, the accuracy."""
        right, total = np.trace(self.counts), self.counts.sum()
        return float(_quotient(2 * right, 2 * right + 2 * (total - right)))

    @property
    def matthews(self) -> float:
        """Matthews correlation of any number of labels, R_K (Gorodkin 2004, equation 8).

        1 is all right, 0 as good as a constant or chance; 0 where one label alone is true or taken.
        """
        counts = self.counts.astype(np.float64)
        total, right = counts.sum(), np.trace(counts)
        true, chosen = counts.sum(axis=1), counts.sum(axis=0)
        spread = (total**2 - true @ true) * (total**2 - chosen @ chosen)
        return float((right * total - true @ chosen) / math.sqrt(spread)) if spread > 0 else 0.0

    def metrics(self) -> dict[str, float]:
        """What a run watches: accuracy, macro_f1 and matthews, and the number of labels."""
        return {
            "accuracy": self.accuracy,
            "macro_f1": self.macro_f1,
            "matthews": self.matthews,
            "labels": int(self.counts.sum()),
        }

    def table(self, title: str = "") -> "Table":
        """A line for each label, and their means, for the terminal."""
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
    """The loss of labels, and what is taken for what, over a finite set of batches.

    Args:
        loss: made with `objectives.classification(config, confusion=True)`.
        params: the parameters.
        batches: host batches with "labels", -1 for none: rows that only fill a batch, say.
        names: of the labels; by default their numbers.

    Returns:
        validation_loss (nats per label) with `Confusion.metrics`, and the confusion matrix.

    Raises:
        ValueError: there is no label, or the loss does not count.
    """
    found = sum_up(loss, params, batches)
    mean = _mean(found, "labels")
    if "confusion" not in found:
        raise ValueError("the loss counts no labels: make it with confusion=True")
    counts = np.rint(found["confusion"]).astype(np.int64)
    confusion = Confusion(counts, tuple(names) or tuple(map(str, range(len(counts)))))
    return {"validation_loss": mean, **confusion.metrics()}, confusion


def evaluate_spans(
    loss: Loss, params: Any, batches: Iterable[Mapping[str, np.ndarray]]
) -> dict[str, float]:
    """How well a model finds spans: exactly, and by their tokens.

    Both are of tokens, as the model sees them; SQuAD's own script compares words of the text.

    Args:
        loss: made with `objectives.classification`, of a model whose head.kind is span.
        params: the parameters.
        batches: host batches with "spans", -1 for none.

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
