"""Dropout of four kinds: each drops its share, keeps the mean, and is off without a key."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from llmjax import models
from llmjax.kernels.flash_attention import Mask
from llmjax.models import blocks, embedding

PLACES = ("embedding", "attention", "hidden", "classifier")
RATE, DRAWS = 0.3, 2000
SHAPE = (2, 6)


def config_of(**rates) -> models.ModelConfig:
    return models.llama(
        vocab_size=16, num_layers=1, embed_dim=8, num_heads=2, mlp_dim=8, position="none",
        head=models.Head("classification", labels=3), dropout=models.Dropout(**rates),
    )  # fmt: skip


@pytest.fixture(scope="module")
def params(draw):
    return draw(models.spec(config_of()))


def tokens() -> np.ndarray:
    return np.random.RandomState(0).randint(0, 16, SHAPE).astype(np.int32)


def linear_in(place, params, key, **rates) -> jax.Array:
    """What is linear in the numbers that a place drops, so that its mean is theirs."""
    config = config_of(**rates)
    hidden = np.random.RandomState(1).randn(*SHAPE, 8).astype(np.float32)
    if place == "embedding":
        return embedding.embed(params, tokens(), np.arange(6)[None], None, config, key)
    if place == "classifier":
        return models.logits(params, hidden, config, key=key)
    layer = jax.tree.map(lambda leaf: leaf[0], params["layers"])
    layer["mlp"] = jax.tree.map(np.zeros_like, layer["mlp"])  # not linear in what is before it
    context = blocks.Context(Mask(causal=True))
    parts = {"params": layer, "key": key, "cache": None}
    return blocks.block(config, jnp.asarray(hidden), parts, context)[0] - hidden


@pytest.mark.parametrize("place", PLACES)
def test_the_mean_is_that_without_dropout(place, params):
    """Over many keys, within five standard errors; so what is kept is scaled by 1/(1 - p)."""
    keys = jax.random.split(jax.random.key(0), DRAWS)
    drawn = jax.jit(jax.vmap(lambda key: linear_in(place, params, key, **{place: RATE})))(keys)
    expected = linear_in(place, params, None)
    error = np.std(drawn, axis=0) / DRAWS**0.5
    assert (np.abs(np.mean(drawn, axis=0) - expected) <= 5 * error + 1e-6).all()
    assert np.mean(error > 0) > 0.8  # the first query of a causal row has one weight, 0 or all


@pytest.mark.parametrize("place", ["embedding", "hidden"])
def test_numbers_are_dropped_or_scaled_one_by_one(place, params):
    keys = jax.random.split(jax.random.key(1), 200)
    drawn = jax.jit(jax.vmap(lambda key: linear_in(place, params, key, **{place: RATE})))(keys)
    ratios = np.asarray(drawn / linear_in(place, params, None))
    kept = np.abs(ratios) > 1e-3
    np.testing.assert_allclose(ratios[kept], 1 / (1 - RATE), rtol=1e-3)
    spread = (RATE * (1 - RATE) / kept.size) ** 0.5
    assert abs(1 - kept.mean() - RATE) < 5 * spread


def answer(params, config, key):
    hidden_key, head_key = (None, None) if key is None else jax.random.split(key)
    hidden, _ = models.apply(params, tokens(), config, key=hidden_key)
    return np.asarray(models.logits(params, hidden, config, key=head_key))


@pytest.mark.parametrize("place", PLACES)
def test_each_place_has_a_rate_of_its_own_and_is_off_without_a_key(place, params):
    config, key = config_of(**{place: RATE}), jax.random.key(2)
    plain = answer(params, config_of(), None)
    assert (answer(params, config_of(), key) == plain).all()
    assert (answer(params, config, None) == plain).all()
    assert not np.allclose(answer(params, config, key), plain, atol=1e-3)
