"""The optimizer configuration."""

import dataclasses
import math
from typing import Literal

from llmjax.checks import require_at_least, require_choices
from llmjax.optim.rules import Rule

# Biases, norms and embedding tables; models may lack some of them.
NO_DECAY = (
    Rule(r"bias$|norm/|(^|/)(embedding|positions|token_types|table|magnitude|factors)$", 0.0),
)


@dataclasses.dataclass(frozen=True)
class OptimizerConfig:
    """AdamW or Muon, with a schedule, learning rates and decay by path, and clipping.

    A rule is a regular expression and a factor for the parameters whose paths it matches (`Rule`).
    The first match applies, and a rule that applies to no parameter is an error.

    Attributes:
        name: adamw (Loshchilov & Hutter 2019); muon orthogonalizes the update of every matrix
            inside the layers (Jordan 2024) and uses AdamW for the rest.
        learning_rate: the peak.
        schedule: after the warm-up: constant; linear or cosine to the final rate; wsd, constant
            and then linear over the last decay_steps (Hu et al. 2024); inverse_sqrt, the peak
            times sqrt(warmup_steps / step) (Vaswani et al. 2017).
        warmup_steps: steps over which the rate rises linearly from 0.
        decay_steps: length of the wsd decay; 0 means a fifth of the run.
        final_share: final rate of linear, cosine and wsd, as a share of the peak.
        beta1: decay of Adam's first moment.
        beta2: decay of Adam's second moment.
        epsilon: added to Adam's denominator.
        momentum: momentum of Muon.
        weight_decay: decoupled, scaled by the learning rate.
        rates: rules for factors of the learning rate.
        layer_decay: factor of the learning rate per layer below the heads, which have 1; the
            embeddings have the smallest rate (`layer_factors`).
        decays: rules for factors of weight_decay; by default 0 for biases, norms and embeddings.
        clip_norm: maximum global norm of the gradient; 0 disables clipping.
    """

    name: Literal["adamw", "muon"] = "adamw"
    learning_rate: float = 3e-4
    schedule: Literal["constant", "linear", "cosine", "wsd", "inverse_sqrt"] = "cosine"
    warmup_steps: int = 100
    decay_steps: int = 0
    final_share: float = 0.1
    beta1: float = 0.9
    beta2: float = 0.95
    epsilon: float = 1e-8
    momentum: float = 0.95
    weight_decay: float = 0.1
    rates: tuple[Rule, ...] = ()
    layer_decay: float = 1.0
    decays: tuple[Rule, ...] = NO_DECAY
    clip_norm: float = 1.0

    def __post_init__(self) -> None:
        require_choices(self, "optimizer")
        for name in ("learning_rate", "epsilon"):
            if not 0 < getattr(self, name) < math.inf:
                found = getattr(self, name)
                raise ValueError(f"optimizer.{name}={found}: must be above 0, and finite")
        limited = ("warmup_steps", "decay_steps", "weight_decay", "clip_norm")
        require_at_least(0, self, "optimizer", limited)
        for name in ("beta1", "beta2", "momentum"):
            if not 0 <= getattr(self, name) < 1:
                raise ValueError(f"optimizer.{name}={getattr(self, name)}: must be in [0, 1)")
        if not 0 <= self.final_share <= 1:
            raise ValueError(f"optimizer.final_share={self.final_share}: must be in [0, 1]")
        if not 0 < self.layer_decay <= 1:
            raise ValueError(f"optimizer.layer_decay={self.layer_decay}: must be in (0, 1]")
        if self.decay_steps and self.schedule != "wsd":
            raise ValueError(
                f"optimizer.decay_steps={self.decay_steps} is for schedule=wsd, not "
                f"{self.schedule}: leave it at 0"
            )
        if self.schedule == "inverse_sqrt" and self.warmup_steps < 1:
            raise ValueError("optimizer.schedule=inverse_sqrt needs warmup_steps of 1 or more")
