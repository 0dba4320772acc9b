"""Perplexities of texts are those of the model's own logits, one text at a time."""

import dataclasses
import functools
import math

import jax
import numpy as np
import pytest

from llmjax import models
from llmjax.data.config import TokenizerConfig
from llmjax.data.tokenizer import train
from llmjax.evaluation import TextScorer
from tests.objectives import comparisons

TEXTS = ["a", "one text and another", "", "bees! " * 30, "short", "x" * 47, "und mehr"]


@pytest.fixture(scope="module")
def tokenizer():
    return train(TokenizerConfig(kind="bytes"), [])


@pytest.fixture(scope="module")
def config(tokenizer):
    base = comparisons.with_head("lm")
    return dataclasses.replace(base, vocab_size=tokenizer.vocab_size, dtype="float32")


@functools.partial(jax.jit, static_argnums=2)
def predict(params, tokens, config):
    return models.logits(params, models.apply(params, tokens, config)[0], config)


def alone(params, config, tokenizer, text: str, length: int) -> float:
    """By softmax over all logits, in float64, each stretch of a row's length by itself."""
    tokens = np.array([*tokenizer.opening, *tokenizer.encode(text), tokenizer.eos_id])
    nats = 0.0
    for start in range(0, len(tokens), length):
        piece, targets = tokens[start : start + length], tokens[start + 1 : start + length + 1]
        row = np.pad(piece, (0, length - len(piece)))  # what comes later is not seen
        logits = np.asarray(predict(params, row[None], config)[0, : len(targets)], np.float64)
        shifted = logits - logits.max(-1, keepdims=True)
        log_probs = shifted - np.log(np.exp(shifted).sum(-1, keepdims=True))
        nats -= log_probs[np.arange(len(targets)), targets].sum()
    return math.exp(nats / (len(tokens) - 1))


def test_as_one_by_one(draw, config, tokenizer) -> None:
    params = draw(models.spec(config))
    scorer = TextScorer(params, config, tokenizer, sequence_length=40, rows=2)
    expected = [alone(params, config, tokenizer, text, 40) for text in TEXTS]
    np.testing.assert_allclose(scorer(TEXTS), expected, rtol=1e-4)
    assert scorer([]) == []


def test_an_encoder_is_refused(config, tokenizer) -> None:
    with pytest.raises(ValueError, match="TextScorer needs a causal model"):
        TextScorer({}, comparisons.with_head("reward"), tokenizer)
