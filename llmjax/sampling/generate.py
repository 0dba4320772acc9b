"""Many rows at once, in order."""

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
    """What was written, on the host: a row for each sample, those of a prompt behind each other.

    Attributes:
        tokens: int32 [B, N]; behind a row's end, 0.
        lengths: int32 [B], tokens of each row, with the one that ended it if one did.
        log_probs: float32 [B, N], of each token under the model itself: raw logits, the whole
            vocabulary, no sampler. Behind a row's end, 0.
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
    """Continues prompts: the `rollouts` of the same arguments, in order.

    With the same weights for many calls, pass `models.for_decoding(params, config)`, made once.
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
