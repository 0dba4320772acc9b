"""Continuous batching: a slot whose row has ended takes the next prompt, while others go on."""

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
    """Continues prompts, and yields each row soon after its end.

    What a row holds depends on its prompt, the prompt's key and the number of the sample: not on
    the other rows, nor on slots, nor on when it was begun. A prompt is read once for all of its
    samples that are begun together. Programs are shared by all prompts of similar length.

    Args:
        params: the model's parameters; best from `models.for_decoding`, made once.
        prompts: token ids, of any lengths and without padding.
        config: the model's.
        key: a typed PRNG key, or one for each prompt, [P].
        max_new_tokens: N, where a row ends that meets no stop.
        sampler: how tokens are chosen.
        samples: rows for each prompt.
        stop_tokens: tokens, or sequences of them, that end a row.
        stop_texts: texts that end a row with the token that completes them, however tokens spell
            them; `text_of` cuts them off. Only what is written counts, not the prompt.
        tokenizer: whose tokens these are.
        slots: rows that are written at a time; by default all.
        refill: how many slots must be free before prompts are read into them: more read weights
            less often, and leave slots idle longer. By default an eighth of them.

    Raises:
        ValueError: at the call: no prompt or an empty one, ids outside the vocabulary, more tokens
            than the model has positions, keys that are not as many as prompts, or stops that mean
            nothing.
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
