"""Law 4 for every decoder: what continues a cache equals the full pass; encoders have no cache."""

import dataclasses
import functools

import jax
import numpy as np
import pytest

from llmjax import models
from llmjax import spec as specs
from tools.golden_models import CONFIGS

DECODERS = {name: config for name, config in CONFIGS.items() if config.attention.causal}
ENCODERS = {name: config for name, config in CONFIGS.items() if not config.attention.causal}
# Tokens of each row at the start, and how many follow one by one: windows are shorter.
LENGTHS, STEPS = np.array([2, 7, 4]), 6


@functools.partial(jax.jit, static_argnums=0)
def run(config, params, tokens, counted, cache):
    hidden, cache = models.apply(params, tokens, config, segment_ids=counted, cache=cache)
    return models.logits(params, hidden, config), cache


@pytest.mark.parametrize("name", DECODERS)
def test_steps_with_a_cache_equal_the_full_pass(name, draw):
    """From weights as they are trained, then laid out for decoding; rows of unequal length."""
    config = DECODERS[name]
    params = draw(models.spec(config))
    tokens = np.random.default_rng(0).integers(1, config.vocab_size, (3, 14), np.int32)
    expected, _ = run(config, params, tokens, None, None)

    longest = LENGTHS.max()
    counted = (np.arange(longest) < LENGTHS[:, None]).astype(np.int32)
    junk = np.where(counted, tokens[:, :longest], 9)
    cache = models.empty_cache(config, 3, 14)
    found, cache = run(config, params, junk, counted, cache)
    assert np.abs(found - expected[:, :longest])[counted == 1].max() < 2e-4

    ready = models.for_decoding(params, config)
    for step in range(STEPS):
        np.testing.assert_array_equal(cache.length, LENGTHS + step)
        at = (np.arange(3), LENGTHS + step)
        found, cache = run(config, ready, tokens[at][:, None], None, cache)
        np.testing.assert_allclose(found[:, 0], expected[at], rtol=0, atol=2e-4)


@pytest.mark.parametrize("name", ENCODERS)
def test_encoders_have_no_cache(name):
    config = ENCODERS[name]
    with pytest.raises(ValueError, match=f"a {config.family} model is bidirectional"):
        models.empty_cache(config, 1, 8)
    # Nor do they take that of a decoder.
    decoder = dataclasses.replace(CONFIGS["llama"], num_layers=config.num_layers, num_kv_heads=0)
    cache = models.empty_cache(decoder, 1, 8)
    tokens = jax.ShapeDtypeStruct((1, 1), np.int32)
    with pytest.raises(ValueError, match=f"a {config.family} model is bidirectional"):
        jax.eval_shape(
            lambda params, tokens: models.apply(params, tokens, config, cache=cache)[0],
            specs.abstract(models.spec(config)),
            tokens,
        )


def test_a_piece_that_does_not_fit_the_cache_is_refused():
    config = CONFIGS["llama"]
    params, tokens = specs.abstract(models.spec(config)), jax.ShapeDtypeStruct((1, 9), np.int32)
    cache = models.empty_cache(config, 1, 8)
    with pytest.raises(ValueError, match="9 tokens"):
        jax.eval_shape(
            lambda params, tokens: models.apply(params, tokens, config, cache=cache)[0],
            params,
            tokens,
        )
