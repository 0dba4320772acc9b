"""Streams text while it is generated."""

from collections.abc import Iterator, Sequence
from typing import Any

import jax
import numpy as np

from llmjax.data.tokenizer import Tokenizer
from llmjax.models import ModelConfig
from llmjax.sampling import prompts as sizes
from llmjax.sampling import stops
from llmjax.sampling.samplers import SamplerConfig
from llmjax.sampling.slots import Slots, Writing
from llmjax.sampling.text import pieces_of


def stream(
    params: Any,
    prompt: Sequence[int],
    config: ModelConfig,
    key: jax.Array,
    tokenizer: Tokenizer,
    *,
    max_new_tokens: int,
    sampler: SamplerConfig,
    stop_tokens: Sequence[int | Sequence[int]] = (),
    stop_texts: Sequence[str] = (),
    chunk: int = 8,
) -> Iterator[str]:
    """Continues one prompt piece by piece; the pieces join to the text that `generate` returns.

    The device generates `chunk` tokens at a time without the host. No piece ends inside a
    character. Generation stops when the caller stops iterating.

    Args:
        params: the model's parameters, preferably from `models.for_decoding`, made once.
        prompt: token ids.
        config: the model's configuration.
        key: a typed PRNG key.
        tokenizer: decodes the tokens.
        max_new_tokens: tokens after which the text ends without a stop.
        sampler: how tokens are chosen.
        stop_tokens: tokens, or sequences of tokens, that end the text and are not part of it.
        stop_texts: texts that do the same, however they are tokenized.
        chunk: tokens per transfer to the host.

    Raises:
        ValueError: as for `generate`, at the call; or if `chunk` is below 1.
    """
    if chunk < 1:
        raise ValueError(f"chunk={chunk}: must be at least 1")
    rows = sizes.as_rows([prompt])
    sizes.check(rows, params, config, max_new_tokens)
    automata = stops.automata(stop_tokens, stop_texts, tokenizer, config.vocab_size)
    how = Writing(config, sampler, automata, max_new_tokens)
    slots = Slots(params, rows, key, how, samples=1, count=1)

    def written() -> Iterator[np.ndarray]:
        slots.fill()
        known = 0
        while slots.busy:
            slots.write(chunk, slots.count)
            tokens = slots.written(0)
            yield tokens[known:]
            known = len(tokens)
            slots.harvest()

    return pieces_of(written(), tokenizer, stop_tokens, stop_texts)
