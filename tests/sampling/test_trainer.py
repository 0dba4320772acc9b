"""Law 4: log-probabilities of rollouts are those that a trainer computes for them."""

import functools

import jax
import numpy as np
import pytest

from llmjax import models, sampling
from llmjax.kernels.linear_cross_entropy import linear_log_probs
from llmjax.sampling import SamplerConfig
from tools.golden_models import CONFIGS

LENGTHS, NEW, WIDTH = (4, 2, 6, 1, 3), 6, 16


@functools.partial(jax.jit, static_argnames="config")
def trained(params, batch, config):
    """By one pass over whole rows, without logits in memory."""
    hidden, _ = models.apply(
        params,
        batch["tokens"],
        config,
        segment_ids=batch["segment_ids"],
        positions=batch["positions"],
    )
    weight = models.lm_weight(params, config)
    return linear_log_probs(hidden, weight, batch["targets"], cap=config.head.cap)[0]


def pack(prompts, rows) -> tuple[dict[str, np.ndarray], list]:
    """Rows of up to two texts each, and where the log-probability of each written token stands."""
    names = ("tokens", "segment_ids", "positions", "targets")
    batch = {name: np.zeros((len(rows), WIDTH), np.int32) for name in names}
    batch["targets"] -= 1
    places, row, start, segment = [], 0, 0, 1
    for prompt, written in zip(prompts, rows, strict=True):
        text = [*prompt, *written]
        if start + len(text) > WIDTH:
            row, start, segment = row + 1, 0, 1
        here = np.s_[row, start : start + len(text)]
        batch["tokens"][here] = text
        batch["segment_ids"][here] = segment
        batch["positions"][here] = np.arange(len(text))
        first = start + len(prompt) - 1
        places.append(np.s_[row, first : first + len(written)])
        batch["targets"][places[-1]] = written
        start, segment = start + len(text), segment + 1
    return batch, places


DECODERS = [name for name, config in CONFIGS.items() if config.head.kind == "lm"]
QUICK = ("gpt2", "llama", "gemma2")  # all kinds of positions, masks and caps


@pytest.mark.parametrize(
    "name",
    [pytest.param(name, marks=() if name in QUICK else pytest.mark.slow) for name in DECODERS],
)
def test_log_probs_equal_the_trainers(name, draw):
    config = CONFIGS[name]
    params = draw(models.spec(config))
    random = np.random.RandomState(3)
    prompts = [random.randint(1, config.vocab_size, length).tolist() for length in LENGTHS]
    sampler = SamplerConfig(temperature=1.2, top_p=0.9, min_p=0.02, repetition_penalty=1.1)
    found = sampling.generate(
        params,
        prompts,
        config,
        jax.random.key(0),
        max_new_tokens=NEW,
        sampler=sampler,
        stop_tokens=range(0, config.vocab_size, 9),
    )
    rows = [row[:size] for row, size in zip(found.tokens, found.lengths, strict=True)]
    batch, places = pack(prompts, rows)
    assert (batch["segment_ids"] == 2).any()  # packed
    expected = np.asarray(trained(params, batch, config))
    for place, log_probs, size in zip(places, found.log_probs, found.lengths, strict=True):
        np.testing.assert_allclose(log_probs[:size], expected[place], rtol=0, atol=1e-5)
