"""Rows of documents, and a program for each model that computes their hidden states."""

import functools
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
import pytest

from llmjax import models

Batch = dict[str, np.ndarray]

# Documents shorter and longer than every window, a digit each, in any order; 0 is padding, on the
# right, on the left, and between.
LAYOUT = (
    "5555555222999000",
    "0004447777777222",
    "8880111100333333",
    "6111111122222220",
)


@pytest.fixture(scope="session")
def documents() -> Callable[[models.ModelConfig], Batch]:
    """`documents(config)`: a batch [4, 16] of packed documents, laid out as `LAYOUT` says."""
    segments = np.array([[int(number) for number in row] for row in LAYOUT], np.int32)
    positions = np.zeros_like(segments)
    for row, column in np.ndindex(segments.shape):
        inside = column and segments[row, column] == segments[row, column - 1]
        positions[row, column] = positions[row, column - 1] + 1 if inside else 0

    def draw(config):
        random = np.random.default_rng(0)
        batch = {"tokens": random.integers(1, config.vocab_size, segments.shape, np.int32)}
        if config.embedding.token_types:
            types = random.integers(0, config.embedding.token_types, segments.shape, np.int32)
            batch["token_types"] = types
        return batch | {"segment_ids": segments, "positions": positions}

    return draw


@pytest.fixture(scope="session")
def hidden_of() -> Callable[[models.ModelConfig, Any, Batch], np.ndarray]:
    """`hidden_of(config, params, batch)`: hidden states [B, S, D]."""

    @functools.partial(jax.jit, static_argnums=0)
    def run(config, params, batch):
        rest = {name: values for name, values in batch.items() if name != "tokens"}
        return models.apply(params, batch["tokens"], config, **rest)[0]

    return lambda *arguments: np.asarray(run(*arguments))
