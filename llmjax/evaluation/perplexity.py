"""Perplexity and bits per byte of a language model on held-out text."""

import math
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils

from llmjax import mesh
from llmjax.evaluation.sums import sum_up
from llmjax.objectives import Loss


def evaluate(
    loss: Loss,
    params: Any,
    batches: Iterable[Mapping[str, np.ndarray]],
    token_bytes: np.ndarray,
) -> dict[str, float]:
    """Perplexity and bits per byte over a finite set of batches.

    The sums over batches are float64, so their order and number do not matter. Bits per byte,
    Σ nats / (ln 2 · bytes), compares models with different tokenizers.

    Args:
        loss: the objective, called without a key (no dropout). Pass the same function every time,
            since each function is compiled once.
        params: the model's parameters.
        batches: host batches with "targets", int32 [B/n, S], this process's share of the rows
            (`mesh.row_share`).
        token_bytes: int [V], bytes of text per token.

    Returns:
        validation_loss (nats per token), perplexity, bits_per_byte, tokens and bytes.

    Raises:
        ValueError: there is no batch, no target, or no byte of text in the targets.
    """
    count = np.zeros(2, np.int64)  # tokens and bytes of this process

    def counted() -> Iterator[Mapping[str, np.ndarray]]:
        for batch in batches:
            targets = np.asarray(batch["targets"])
            targets = targets[targets >= 0]
            count[:] += targets.size, token_bytes[targets].sum(dtype=np.int64)
            yield batch

    found = sum_up(loss, params, counted())
    nats, weight = found["sum"], found["weight"]
    if jax.process_count() > 1:
        # Every share of the rows is read by the same number of processes.
        everywhere = multihost_utils.process_allgather(count).sum(axis=0)
        count = everywhere * mesh.row_share()[1] // jax.process_count()
    if not weight or not count[1]:
        raise ValueError(
            f"nothing to evaluate: {count[0]} target tokens with {count[1]} bytes of text; "
            "give more validation text, or a larger validation_share"
        )
    mean = nats / weight
    return {
        "validation_loss": mean,
        "perplexity": math.exp(min(mean, 700.0)),
        "bits_per_byte": nats / math.log(2) / float(count[1]),
        "tokens": int(count[0]),
        "bytes": int(count[1]),
    }
