"""Learning rates for fine-tuning, by method: the fewer parameters train, the larger the rate."""

import typing
import warnings
from typing import Literal

from llmjax.optim.config import OptimizerConfig

Method = Literal["full", "lora", "qlora", "dora", "adapter", "prefix", "ia3"]

# (lowest, usual, highest) rate of AdamW.
RATES: dict[Method, tuple[float, float, float]] = {
    # The chapter; Devlin et al. 2019, appendix A.3, searches 2e-5 to 5e-5.
    "full": (1e-5, 2e-5, 5e-5),
    # The chapter; Hu et al. 2021, tables 9 to 12: 2e-4 for GPT-2 and 3, 2e-4 to 5e-4 for RoBERTa.
    "lora": (1e-4, 2e-4, 1e-3),
    # Dettmers et al. 2023, table 9: 2e-4 up to 13 billion parameters, 1e-4 above.
    "qlora": (1e-4, 2e-4, 1e-3),
    # Liu et al. 2024, appendix A: LoRA's, or half of them.
    "dora": (5e-5, 1e-4, 1e-3),
    # Houlsby et al. 2019, section 3.2, searches 3e-5, 3e-4 and 3e-3.
    "adapter": (3e-5, 3e-4, 3e-3),
    # Li & Liang 2021, appendix: 5e-5 to 8e-5 with the reparametrisation; Liu et al. 2022 (P-tuning
    # v2) without it: 5e-3 to 1e-2.
    "prefix": (5e-5, 1e-3, 1e-2),
    # Liu et al. 2022 (T-Few), section 3.3: 3e-3.
    "ia3": (1e-3, 3e-3, 1e-2),
}
FAR = 10.0  # factor beyond either end of the range from which a rate is far


def suggested(method: Method, steps: int = 1000) -> OptimizerConfig:
    """AdamW for a fine-tuning method; larger models need smaller rates of its range.

    After a warm-up over 6 % of the steps (Hu et al. 2021, table 9) the rate decays linearly to 0;
    decay and moments follow the chapter and Devlin et al.

    Raises:
        ValueError: the method is unknown.
    """
    _, usual, _ = _range(method)
    return OptimizerConfig(
        learning_rate=usual,
        schedule="linear",
        warmup_steps=round(0.06 * steps),
        final_share=0.0,
        beta2=0.999,
        weight_decay=0.01,
    )


def warn_if_far(learning_rate: float, method: Method) -> None:
    """Warns if a rate is more than a factor of ten outside the method's range.

    Raises:
        ValueError: the method is unknown.
    """
    low, usual, high = _range(method)
    if not low / FAR <= learning_rate <= high * FAR:
        warnings.warn(
            f"optimizer.learning_rate={learning_rate:g} is far from the usual range for {method}, "
            f"{low:g} to {high:g}: a typical value is {usual:g}",
            stacklevel=2,
        )


def _range(method: Method) -> tuple[float, float, float]:
    if method not in RATES:
        known = ", ".join(typing.get_args(Method))
        raise ValueError(f"method={method!r}: choose one of {known}")
    return RATES[method]
