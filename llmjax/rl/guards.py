"""Guards against reward hacking.

A reward is a proxy (Gao et al. 2023, Scaling Laws for Reward Model Overoptimization): far from the
reference, a policy exploits what the reward overrates. Signs of this are the divergence, answers
that grow or repeat themselves, and a gold reward on held-out prompts that falls while the reward
rises.
"""

import dataclasses
import math
import warnings
from collections.abc import Callable
from typing import Any

from llmjax.checks import require_at_least


@dataclasses.dataclass(frozen=True)
class GuardConfig:
    """Thresholds of the alarms.

    Attributes:
        kl_budget: divergence from the reference, in nats per response, beyond which the run ends;
            0 for no bound.
        repetition: mean share of an answer's trigrams that repeat earlier ones.
        growth: length of answers relative to the first iteration; at least 1.
        gold_drop: how far the gold reward may fall below its best while the reward is higher than
            at that point. A drop within three standard errors is never an alarm.
        stop: whether the other alarms end the run too, as kl_budget always does.
    """

    kl_budget: float = 0.0
    repetition: float = 0.5
    growth: float = 3.0
    gold_drop: float = 0.05
    stop: bool = False

    def __post_init__(self) -> None:
        require_at_least(0, self, "guards", ("kl_budget", "repetition", "gold_drop"))
        require_at_least(1, self, "guards", ("growth",))


# The best of many evaluations is partly luck, so later ones tend to be lower.
_NOISE = 3.0  # standard errors


class Guard:
    """Watches a run; its state is saved with the run (`Checkpointer(remembering=…)`).

    Attributes:
        alarms: (step, message), in order; each kind once.
        record: called with the step and {"alarm": message} at each alarm.
    """

    def __init__(self, config: GuardConfig) -> None:
        self.config = config
        self.alarms: list[tuple[int, str]] = []
        self.record: Callable[[int, dict[str, Any]], None] = lambda step, found: None
        self._kinds: set[str] = set()
        self._first_length: float | None = None
        self._divergence = 0.0
        # The best gold reward, its standard error, and the reward at that point.
        self._best: tuple[float, float, float] | None = None

    @property
    def ended(self) -> str:
        """Why the run should end, under the current configuration; "" if it should not."""
        budget = self.config.kl_budget
        if 0 < budget < self._divergence:
            return (
                f"{self._divergence:.2f} nats from the reference, over guards.kl_budget={budget:g}"
            )
        return self.alarms[-1][1] if self.config.stop and self.alarms else ""

    def iteration(self, step: int, found: dict[str, float]) -> bool:
        """Checks the metrics of an iteration of `Experience`; True if the run should end."""
        config, length = self.config, found["answer_tokens"]
        if self._first_length is None:
            self._first_length = max(length, 1.0)
        if found["repetition"] > config.repetition:
            share = found["repetition"]
            self._alarm(
                step, "repetition", f"answers repeat themselves ({share:.0%} of their trigrams)"
            )
        if length > config.growth * self._first_length:
            grown = f"answers grew from {self._first_length:.0f} to {length:.0f} tokens"
            self._alarm(step, "growth", grown)
        self._divergence = found.get("kl_per_response", 0.0)
        if 0 < config.kl_budget < self._divergence:
            self._alarm(step, "kl", f"{self.ended}: the run ends")
        return bool(self.ended)

    def evaluation(self, step: int, reward: float, gold: float, error: float = 0.0) -> bool:
        """Checks rewards on held-out prompts; True if the run should end.

        Args:
            step: step of the evaluation.
            reward: the mean reward.
            gold: the mean gold reward.
            error: its standard error.
        """
        if self._best is None or gold > self._best[0]:
            self._best = gold, error, reward
        best_gold, best_error, then = self._best
        allowed = max(self.config.gold_drop, _NOISE * math.hypot(error, best_error))
        if gold < best_gold - allowed and reward > then:
            self._alarm(
                step,
                "hacking",
                f"the gold reward fell from {best_gold:.3f} to {gold:.3f} while the reward rose "
                f"from {then:.3f} to {reward:.3f}: the policy exploits the reward",
            )
        return bool(self.ended)

    def _alarm(self, step: int, kind: str, what: str) -> None:
        if kind in self._kinds:
            return
        self._kinds.add(kind)
        self.alarms.append((step, what))
        self.record(step, {"alarm": what})
        warnings.warn(f"step {step}: {what}", stacklevel=3)

    def get_state(self) -> dict[str, Any]:
        """The state that a resumed run needs."""
        return {
            "alarms": self.alarms,
            "kinds": sorted(self._kinds),
            "first_length": self._first_length,
            "divergence": self._divergence,
            "best": self._best,
        }

    def set_state(self, state: dict[str, Any]) -> None:
        """Restores a state of `get_state`."""
        self.alarms = [(step, what) for step, what in state["alarms"]]
        self._kinds, self._first_length = set(state["kinds"]), state["first_length"]
        self._divergence = state["divergence"]
        self._best = tuple(state["best"]) if state["best"] else None
