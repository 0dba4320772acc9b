"""What an optimizer is made of."""

import dataclasses
from typing import Literal

from llmjax.checks import require_choices


@dataclasses.dataclass(frozen=True)
class OptimizerConfig:
    """AdamW or Muon, with a schedule, decay by path and clipping.

    Attributes:
        name: adamw (Loshchilov & Hutter 2019); muon orthogonalises the update of every matrix
            inside the layers (Jordan 2024) and leaves the rest to AdamW.
        learning_rate: the peak.
        schedule: after the warm-up: constant; linear or cosine to the final rate; wsd, constant
            and then linear over the last decay_steps (Hu et al. 2024); inverse_sqrt, the peak
            times sqrt(warmup_steps / step) (Vaswani et al. 2017).
        warmup_steps: steps over which the rate rises linearly from 0.
        decay_steps: length of the wsd decay; 0 means a fifth of the run.
        final_share: of the peak, left at the end of linear, cosine and wsd.
        beta1: decay of Adam's first moment.
        beta2: decay of Adam's second moment.
        epsilon: added to Adam's denominator.
        momentum: of Muon.
        weight_decay: decoupled, scaled by the learning rate.
        no_decay: regular expression; weights whose path it finds are not decayed.
        clip_norm: largest global norm of the gradient; 0 does not clip.
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
    no_decay: str = r"bias$|norm/|(^|/)(embedding|positions|token_types|table|magnitude|factors)$"
    clip_norm: float = 1.0

    def __post_init__(self) -> None:
        require_choices(self, "optimizer")
        for name in ("learning_rate", "epsilon"):
            if not getattr(self, name) > 0:
                raise ValueError(f"optimizer.{name}={getattr(self, name)}: must be above 0")
        for name in ("warmup_steps", "decay_steps", "weight_decay", "clip_norm"):
            if getattr(self, name) < 0:
                raise ValueError(f"optimizer.{name}={getattr(self, name)}: must not be negative")
        for name in ("beta1", "beta2", "momentum"):
            if not 0 <= getattr(self, name) < 1:
                raise ValueError(f"optimizer.{name}={getattr(self, name)}: must be in [0, 1)")
        if not 0 <= self.final_share <= 1:
            raise ValueError(f"optimizer.final_share={self.final_share}: must be in [0, 1]")
        if self.schedule == "inverse_sqrt" and self.warmup_steps < 1:
            raise ValueError("optimizer.schedule=inverse_sqrt needs warmup_steps of 1 or more")
