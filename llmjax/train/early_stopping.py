"""Early stopping: ends a run when the validation metric no longer improves."""

import dataclasses
import math
from collections.abc import Collection, Iterable
from typing import TYPE_CHECKING, Any, Literal

from llmjax.checks import require_choices
from llmjax.train.loop import Pause
from llmjax.train.metrics import Record, is_evaluation

if TYPE_CHECKING:
    from llmjax.train.checkpoint import Checkpointer

Direction = Literal["min", "max"]
# Suffixes of metric names.
_BY_ENDING: dict[Direction, tuple[str, ...]] = {
    "min": ("loss", "perplexity", "bits_per_byte"),
    "max": ("accuracy", "f1", "matthews", "match", "reward"),
}


@dataclasses.dataclass(frozen=True)
class EarlyStoppingConfig:
    """When to end a run early.

    Attributes:
        patience: evaluations without improvement after which the run ends; 0 for never.
        min_delta: minimum change that counts as an improvement.
        metric: the metric of evaluations to watch.
        mode: whether the lowest (min) or the highest (max) is the best; auto decides by the
            metric's name: min for losses, perplexities and bits, max for accuracies, F1 and
            rewards.
    """

    patience: int = 0
    min_delta: float = 0.0
    metric: str = "validation_loss"
    mode: Literal["auto", "min", "max"] = "auto"

    def __post_init__(self) -> None:
        if self.patience < 0:
            raise ValueError(f"patience={self.patience}: must not be negative (0 for never)")
        if not 0.0 <= self.min_delta < math.inf:
            raise ValueError(f"min_delta={self.min_delta}: must be 0 or more")
        require_choices(self, "early_stopping")
        _ = self.direction  # raises if the name does not determine it

    @property
    def direction(self) -> Direction:
        """Whether the lowest or the highest is the best.

        Raises:
            ValueError: the mode is auto, but the metric's name does not determine the direction.
        """
        if self.mode != "auto":
            return self.mode
        for direction, endings in _BY_ENDING.items():
            if self.metric.endswith(endings):
                return direction
        raise ValueError(
            f"early_stopping.metric={self.metric}: its name does not show whether lower or higher "
            "is better; set early_stopping.mode to min or max"
        )

    def require_metric(self, found: Collection[str]) -> None:
        """Raises ValueError unless the metric is among those of an evaluation."""
        if self.metric not in found:
            raise ValueError(
                f"early_stopping.metric={self.metric}: evaluations have {', '.join(sorted(found))}"
            )

    def best_of(self, records: Iterable[Record]) -> Record | None:
        """The first evaluation with the best value of the metric; None if none has the metric."""
        found = filter(is_evaluation, records)
        known = [r for r in found if isinstance(r.get(self.metric), int | float)]
        choose = min if self.direction == "min" else max
        return choose(known, key=lambda record: record[self.metric], default=None)


class EarlyStopping:
    """The hook that tracks the best metric and ends the run when it no longer improves.

    Call it after an evaluation has put the metric into `Pause.metrics`. Its state belongs to the
    run: pass it to `Checkpointer(remembering=…)`, and place it before the checkpointer's hook.

    Attributes:
        best: the best metric so far, or None before the first.
        best_step: its step.
        waited: evaluations since then.
    """

    def __init__(self, config: EarlyStoppingConfig) -> None:
        self.config = config
        self.best: float | None = None
        self.best_step = 0
        self.waited = 0

    @property
    def stopped(self) -> bool:
        """Whether patience has run out."""
        return 0 < self.config.patience <= self.waited

    def __call__(self, pause: Pause) -> bool:
        """Counts an evaluation; True if the run should end.

        Raises:
            ValueError: the evaluation does not have the metric.
        """
        self.config.require_metric(pause.metrics)
        value = pause.metrics[self.config.metric]
        if self._is_better(value):
            self.best, self.best_step, self.waited = value, pause.step, 0
        else:
            self.waited += 1
        return self.stopped

    def _is_better(self, value: float) -> bool:
        if not math.isfinite(value):
            return False
        if self.best is None:
            return True
        gain = self.best - value if self.config.direction == "min" else value - self.best
        return gain > self.config.min_delta

    def get_state(self) -> dict[str, Any]:
        """The state that a resumed run needs."""
        found = {"best": self.best, "best_step": self.best_step, "waited": self.waited}
        return found | self._watched

    def set_state(self, state: dict[str, Any]) -> None:
        """Restores a state of `get_state`, unless it is of another metric or direction."""
        if any(state.get(name, value) != value for name, value in self._watched.items()):
            return
        self.best, self.best_step = state["best"], state["best_step"]
        self.waited = state["waited"]

    @property
    def _watched(self) -> dict[str, str]:
        return {"metric": self.config.metric, "direction": self.config.direction}


class SaveBest:
    """The hook that saves the best step so far, if it has not been saved.

    Checkpoints with their own interval may miss the best step; with this hook, `restore_best` gives
    the best of all evaluations. Call it at every evaluation, after `EarlyStopping` and the
    checkpointer's own hook.

    Args:
        early_stopping: tracks the best step.
        checkpointer: saves it.
    """

    def __init__(self, early_stopping: EarlyStopping, checkpointer: "Checkpointer") -> None:
        self._early_stopping, self._checkpointer = early_stopping, checkpointer

    def __call__(self, pause: Pause) -> None:
        """Saves, if the step is the best."""
        saved = self._checkpointer.last_saved == pause.step
        if self._early_stopping.best_step == pause.step and not saved:
            self._checkpointer(pause)
