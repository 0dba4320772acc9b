"""Text as it is written."""

from collections.abc import Iterator, Sequence
from typing import Any

import jax
import numpy as np

from llmjax import models
from llmjax.data.tokenizer import StreamDecoder, Tokenizer
from llmjax.models import ModelConfig
from llmjax.sampling import decode
from llmjax.sampling.samplers import SamplerConfig


def stream(
    params: Any,
    prompt: Sequence[int],
    config: ModelConfig,
    key: jax.Array,
    tokenizer: Tokenizer,
    *,
    max_new_tokens: int,
    sampler: SamplerConfig,
    stop_tokens: Sequence[int] = (),
    chunk: int = 8,
) -> Iterator[str]:
    """Continues one prompt, piece by piece; the pieces join to what `generate` would write.

    Tokens are drawn `chunk` at a time without asking the host, and no piece ends inside of a
    character. Nothing is computed for pieces that are not asked for.

    Args:
        params: the model's parameters; best from `models.for_decoding`, made once.
        prompt: token ids.
        config: the model's.
        key: a typed PRNG key.
        tokenizer: turns tokens into text; a stop token's own text is left out.
        max_new_tokens: where the text ends that meets no stop token.
        sampler: how tokens are chosen.
        stop_tokens: token ids that end the text.
        chunk: tokens between two looks of the host.

    Raises:
        ValueError: as `generate`, at the call; or a chunk without a token.
    """
    if chunk < 1:
        raise ValueError(f"chunk={chunk}: must be at least 1")
    rows = decode.as_rows([prompt])
    decode.check(rows, config, max_new_tokens, stop_tokens)
    limits = [*range(chunk, max_new_tokens, chunk), max_new_tokens]

    def pieces() -> Iterator[str]:
        ready = models.for_decoding(params, config)
        text = StreamDecoder(tokenizer)
        stops = decode.stop_ids(stop_tokens)
        state = decode.prefill(ready, rows, config, key, max_new_tokens, sampler)
        written = 0
        for limit in limits:
            state = decode.decode(ready, state, limit, stops, config, sampler)
            length = int(np.asarray(state.lengths)[0])
            tokens = np.asarray(state.tokens)[0, written:length]
            written = length
            if piece := text.push(int(token) for token in tokens if token not in stops):
                yield piece
            if np.asarray(state.done)[0]:
                break
        if rest := text.finish():
            yield rest

    return pieces()
