"""Generates many rows and returns them in order."""

import dataclasses
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np

from llmjax.data.tokenizer import Tokenizer
from llmjax.models import ModelConfig
from llmjax.sampling.rollouts import rollouts
from llmjax.sampling.samplers import SamplerConfig


@dataclasses.dataclass(frozen=True)
class Generated:
    """Generated rows on the host, one per sample; the samples of a prompt are adjacent.

    Attributes:
        tokens: int32 [B, N]; 0 after the end of a row.
        lengths: int32 [B], tokens of each row, including a stop token.
        log_probs: float32 [B, N], of each token under the model itself: raw logits, full
            vocabulary, no sampler. 0 after the end of a row.
    """

    tokens: np.ndarray
    lengths: np.ndarray
    log_probs: np.ndarray


def generate(
    params: Any,
    prompts: Sequence[Sequence[int]] | np.ndarray,
    config: ModelConfig,
    key: jax.Array,
    *,
    max_new_tokens: int,
    sampler: SamplerConfig,
    samples: int = 1,
    stop_tokens: Sequence[int | Sequence[int]] = (),
    stop_texts: Sequence[str] = (),
    tokenizer: Tokenizer | None = None,
    slots: int | None = None,
) -> Generated:
    """Continues prompts: `rollouts` with the same arguments, in order.

    For many calls with the same weights, pass `models.for_decoding(params, config)`, made once.
    """
    rows = rollouts(
        params,
        prompts,
        config,
        key,
        max_new_tokens=max_new_tokens,
        sampler=sampler,
        samples=samples,
        stop_tokens=stop_tokens,
        stop_texts=stop_texts,
        tokenizer=tokenizer,
        slots=slots,
    )
    shape = (len(prompts) * samples, max_new_tokens)
    found = Generated(
        np.zeros(shape, np.int32), np.zeros(shape[0], np.int32), np.zeros(shape, np.float32)
    )
    for row in rows:
        place, size = row.prompt * samples + row.sample, len(row.tokens)
        found.lengths[place] = size
        found.tokens[place, :size] = row.tokens
        found.log_probs[place, :size] = row.log_probs
    return found
