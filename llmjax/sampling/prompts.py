"""Checks prompts and pads them to a few array sizes."""

from collections.abc import Sequence
from typing import Any

import jax
import numpy as np

from llmjax import models
from llmjax.models import ModelConfig

_SMALLEST = 16  # finer buckets would save little


def as_rows(prompts: Sequence[Sequence[int]] | np.ndarray) -> list[np.ndarray]:
    """The tokens of each prompt, int32; raises ValueError unless they are integers."""
    rows = [np.asarray(prompt) for prompt in prompts]
    for index, row in enumerate(rows):
        if row.size and row.dtype.kind not in "iu":
            raise ValueError(f"prompt {index} is {row.dtype}: give token ids, which are integers")
    return [row.astype(np.int32) for row in rows]


def check(rows: list[np.ndarray], params: Any, config: ModelConfig, max_new_tokens: int) -> None:
    """Raises ValueError for prompts or arguments that this model cannot continue."""
    most = models.longest_row(params, config)
    if max_new_tokens < 1:
        raise ValueError(f"max_new_tokens={max_new_tokens}: must be at least 1")
    if not rows:
        raise ValueError("prompts is empty: give at least one prompt")
    for index, row in enumerate(rows):
        if row.ndim != 1 or not len(row):
            raise ValueError(f"prompt {index} has no tokens: begin it with the bos token, say")
        if row.min() < 0 or row.max() >= config.vocab_size:
            raise ValueError(
                f"prompt {index} has tokens from {row.min()} to {row.max()}, but the model's "
                f"vocabulary is 0 to {config.vocab_size - 1}"
            )
        if most is not None and len(row) + max_new_tokens > most:
            raise ValueError(
                f"prompt {index} has {len(row)} tokens, which with max_new_tokens={max_new_tokens} "
                f"exceeds the model's {most} learned positions: shorten either"
            )


def padded(rows: Sequence[np.ndarray], count: int, capacity: int) -> tuple[np.ndarray, np.ndarray]:
    """Pads rows to tokens, int32 [count, S], with their lengths [count]; extra rows have length 0.

    S is a power of two or the capacity.
    """
    tokens = np.zeros((count, min(bucket(max(map(len, rows))), capacity)), np.int32)
    lengths = np.zeros(count, np.int32)
    for index, row in enumerate(rows):
        tokens[index, : len(row)] = row
        lengths[index] = len(row)
    return tokens, lengths


def keys_of(key: jax.Array, count: int) -> np.ndarray:
    """Key data of each prompt, uint32 [P, ...], from one key for all or one key each.

    Raises:
        ValueError: the keys are not typed ones, or not as many as the prompts.
    """
    if not jax.dtypes.issubdtype(key.dtype, jax.dtypes.prng_key):
        raise ValueError(f"key is a plain {key.dtype} array: make it with jax.random.key(seed)")
    if not key.ndim:
        return np.asarray(jax.random.key_data(_folded(key, np.arange(bucket(count)))))[:count]
    if key.shape != (count,):
        raise ValueError(f"keys {key.shape} for {count} prompts: give one for each, or one for all")
    return np.asarray(jax.random.key_data(key))


@jax.jit
def _folded(key: jax.Array, numbers: jax.Array) -> jax.Array:
    return jax.vmap(jax.random.fold_in, (None, 0))(key, numbers)


def bucket(length: int) -> int:
    """The array size for a number of tokens."""
    return power_of_two(length, _SMALLEST)


def power_of_two(size: int, smallest: int = 1) -> int:
    """The least power of two that is at least `size` and `smallest`."""
    return max(smallest, 1 << (size - 1).bit_length())
