"""Stop when the validation metric has not got better for a while."""

import dataclasses
import math
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any, Literal

from llmjax.checks import require_choices
from llmjax.train.loop import Pause
from llmjax.train.metrics import Record

if TYPE_CHECKING:
    from llmjax.train.checkpoint import Checkpointer

Direction = Literal["min", "max"]
# Endings of the names of metrics.
_BY_ENDING: dict[Direction, tuple[str, ...]] = {
    "min": ("loss", "perplexity", "bits_per_byte"),
    "max": ("accuracy", "f1", "matthews", "match", "reward"),
}


@dataclasses.dataclass(frozen=True)
class EarlyStoppingConfig:
    """When a run has learnt what it will.

    Attributes:
        patience: evaluations without a better metric after which the run ends; 0 never ends it.
        min_delta: how much better the metric must be to count as better.
        metric: the metric of an evaluation that is watched.
        mode: whether the lowest (min) or the highest (max) is the best; auto, by the metric's name:
            of losses, perplexities and bits the lowest, of accuracies, F1 and rewards the highest.
    """

    patience: int = 0
    min_delta: float = 0.0
    metric: str = "validation_loss"
    mode: Literal["auto", "min", "max"] = "auto"

    def __post_init__(self) -> None:
        if self.patience < 0:
            raise ValueError(f"patience={self.patience}: a number of evaluations, or 0 for never")
        if not 0.0 <= self.min_delta < math.inf:
            raise ValueError(f"min_delta={self.min_delta}: an improvement is 0 or more")
        require_choices(self, "early_stopping")
        _ = self.direction  # a name that does not tell is an error here

    @property
    def direction(self) -> Direction:
        """Which is the best: the lowest or the highest.

        Raises:
            ValueError: the mode is auto, and the metric's name does not tell.
        """
        if self.mode != "auto":
            return self.mode
        for direction, endings in _BY_ENDING.items():
            if self.metric.endswith(endings):
                return direction
        raise ValueError(
            f"early_stopping.metric={self.metric}: its name does not tell whether the lowest or "
            "the highest is the best; set early_stopping.mode to min or max"
        )

    def best_of(self, records: Iterable[Record]) -> Record | None:
        """The first of the records that have the best value of the metric; None if none has one."""
        known = [r for r in records if isinstance(r.get(self.metric), int | float)]
        choose = min if self.direction == "min" else max
        return choose(known, key=lambda record: record[self.metric], default=None)


class EarlyStopping:
    """The hook that remembers the best metric and ends the run when it stays the best too long.

    Call it when an evaluation before it has put the metric into `Pause.metrics`. What it remembers
    belongs to the run: give it to `Checkpointer(remembering=…)`, before whose hook it stands.

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
        """Whether patience is at an end."""
        return 0 < self.config.patience <= self.waited

    def __call__(self, pause: Pause) -> bool:
        """Counts an evaluation; whether the run should end.

        Raises:
            ValueError: the evaluation does not have the metric.
        """
        metric = self.config.metric
        if metric not in pause.metrics:
            raise ValueError(
                f"early_stopping.metric={metric}: an evaluation has {sorted(pause.metrics)}"
            )
        value = pause.metrics[metric]
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
        """What a continuation needs to know."""
        return {"best": self.best, "best_step": self.best_step, "waited": self.waited}

    def set_state(self, state: dict[str, Any]) -> None:
        """Takes up what `get_state` gave."""
        self.best, self.best_step = state["best"], state["best_step"]
        self.waited = state["waited"]


class SaveBest:
    """The hook that saves a step which is the best so far and which nobody has saved.

    Checkpoints at intervals of their own may pass the best by; what `restore_best` gives is then
    the best of all evaluations. It is due where they are, and stands behind `EarlyStopping` and the
    checkpointer's own hook.

    Args:
        early_stopping: knows the best.
        checkpointer: saves.
    """

    def __init__(self, early_stopping: EarlyStopping, checkpointer: "Checkpointer") -> None:
        self._early_stopping, self._checkpointer = early_stopping, checkpointer

    def __call__(self, pause: Pause) -> None:
        """Saves, if the step is the best."""
        saved = self._checkpointer.last_saved == pause.step
        if self._early_stopping.best_step == pause.step and not saved:
            self._checkpointer(pause)
