"""Continuous batching: a slot whose row has ended takes the next prompt while others continue."""

from collections.abc import Iterator, Sequence
from typing import Any

import jax
import numpy as np

from llmjax.data.tokenizer import Tokenizer
from llmjax.models import ModelConfig
from llmjax.sampling import prompts as sizes
from llmjax.sampling import stops
from llmjax.sampling.samplers import SamplerConfig
from llmjax.sampling.slots import Rollout, Slots, Writing


def rollouts(
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
    refill: int | None = None,
) -> Iterator[Rollout]:
    """Continues prompts and yields each row soon after it ends.

    A row depends on its prompt, the prompt's key and its sample index only: not on other rows, the
    number of slots, or when it was started. Samples of a prompt that start together share one
    prefill. Prompts of similar length share compiled programs.

    Args:
        params: the model's parameters, preferably from `models.for_decoding`, made once.
        prompts: token ids, of any lengths, without padding.
        config: the model's configuration.
        key: a typed PRNG key, or one for each prompt, [P].
        max_new_tokens: N, after which a row ends without a stop.
        sampler: how tokens are chosen.
        samples: rows per prompt.
        stop_tokens: tokens, or sequences of tokens, that end a row.
        stop_texts: texts that end a row at the token that completes them, however they are
            tokenized; `text_of` cuts them off. The prompt is not searched.
        tokenizer: the model's tokenizer; needed for stop_texts.
        slots: rows generated at a time; all by default.
        refill: number of free slots before new prompts are prefilled. A larger number reads the
            weights less often but leaves slots idle longer. An eighth of the slots by default.

    Raises:
        ValueError: at the call: no prompt or an empty one, ids outside the vocabulary, more tokens
            than the model has positions, a number of keys that is not the number of prompts, or
            invalid stops.
    """
    rows = sizes.as_rows(prompts)
    sizes.check(rows, params, config, max_new_tokens)
    for name, value in (("samples", samples), ("slots", slots), ("refill", refill)):
        if value is not None and value < 1:
            raise ValueError(f"{name}={value}: must be at least 1")
    automata = stops.automata(stop_tokens, stop_texts, tokenizer, config.vocab_size)
    how = Writing(config, sampler, automata, max_new_tokens)
    count = min(slots or len(rows) * samples, len(rows) * samples)
    filled = Slots(params, rows, key, how, samples=samples, count=count)
    return _written(filled, max_new_tokens, min(refill or max(1, count // 8), count))


def _written(slots: Slots, max_new_tokens: int, refill: int) -> Iterator[Rollout]:
    done: list[Rollout] = []
    slots.fill()
    while slots.busy:
        slots.write(max_new_tokens, refill if slots.waiting else slots.count)
        yield from done  # while the device writes
        done = slots.harvest()
        slots.fill()
    yield from done
