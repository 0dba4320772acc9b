"""How well a model tells what is hidden in text that it has not seen, or replaced."""

import math
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

from llmjax.evaluation.sums import sum_up
from llmjax.objectives import Loss


def evaluate_mlm(
    loss: Loss, params: Any, batches: Iterable[Mapping[str, np.ndarray]]
) -> dict[str, float]:
    """The loss at masked tokens, whose masks are the same at every call; see `sum_up`.

    Args:
        loss: made with `objectives.mlm`.
        params: the parameters.
        batches: host batches, int32 [B/processes, S].

    Returns:
        validation_loss (nats per masked token), pseudo_perplexity, its exponential, and the number
        of masked_tokens. The pseudo-perplexity of Salazar et al. (2020) hides one token at a time,
        and so is lower. Neither is a probability of the text, so there are no bits per byte.

    Raises:
        ValueError: there is no batch, or nothing was masked.
    """
    found = sum_up(loss, params, batches)
    mean = _mean(found, "sum")
    return {
        "validation_loss": mean,
        "pseudo_perplexity": math.exp(min(mean, 700.0)),
        "masked_tokens": int(found["weight"]),
    }


def evaluate_rtd(
    loss: Loss, params: Any, batches: Iterable[Mapping[str, np.ndarray]]
) -> dict[str, float]:
    """Both losses of replaced-token detection, with the same replacements at every call.

    Args:
        loss: made with `objectives.rtd`.
        params: the parameters of both models.
        batches: host batches, int32 [B/processes, S].

    Returns:
        validation_loss, the joint one; generator_loss (nats per masked token; a mean over batches,
        each weighed by its tokens) and discriminator_loss (nats per token); the shares of tokens
        that were replaced and that the discriminator told right (discriminator_accuracy), which
        is 1 - replaced for one that takes all for originals; and the number of tokens.

    Raises:
        ValueError: there is no batch, or no token.
    """
    found = sum_up(loss, params, batches)
    names = ("generator_loss", "discriminator_loss", "discriminator_accuracy", "replaced")
    return {
        "validation_loss": _mean(found, "sum"),
        **{name: _mean(found, name) for name in names},
        "tokens": int(found["weight"]),
    }


def _mean(found: Mapping[str, float], name: str) -> float:
    if not found["weight"]:
        raise ValueError(
            "nothing to evaluate: the batches have no token to predict; give more validation text, "
            "or a larger validation_share"
        )
    return found[name] / found["weight"]
