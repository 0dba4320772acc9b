"""Held-out losses of masked language modelling and replaced-token detection."""

import math
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

from llmjax.evaluation.sums import sum_up
from llmjax.objectives import Loss


def evaluate_mlm(
    loss: Loss, params: Any, batches: Iterable[Mapping[str, np.ndarray]]
) -> dict[str, float]:
    """The loss at masked tokens; masks are the same at every call, see `sum_up`.

    Args:
        loss: made with `objectives.mlm`.
        params: the model's parameters.
        batches: host batches, int32 [B/processes, S].

    Returns:
        validation_loss (nats per masked token), pseudo_perplexity (its exponential) and
        masked_tokens (their number). The pseudo-perplexity of Salazar et al. (2020) masks one
        token at a time and is therefore lower. Neither is a probability of the text, so there are
        no bits per byte.

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
    """Both losses of replaced-token detection; replacements are the same at every call.

    Args:
        loss: made with `objectives.rtd`.
        params: the parameters of both models.
        batches: host batches, int32 [B/processes, S].

    Returns:
        validation_loss (the joint loss); generator_loss (nats per masked token, averaged over
        batches weighted by their tokens); discriminator_loss (nats per token); replaced (the share
        of replaced tokens); discriminator_accuracy, which is 1 - replaced if every token is
        classified as original; and tokens (their number).

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
