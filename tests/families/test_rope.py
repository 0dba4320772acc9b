"""Stretched rotations are those that the papers describe."""

import dataclasses
import math

import numpy as np
import pytest

from llmjax import models
from llmjax.models import Attention, Rope, layers

# Llama 3.1 8B: heads of 128 channels.
LLAMA31 = models.llama(
    vocab_size=128256,
    num_layers=32,
    embed_dim=4096,
    num_heads=32,
    rope=Rope(500_000.0, scaling="llama3", factor=8.0, original_length=8192),
)


def plain(theta, channels):
    """θ_i = base^(-2i/C) (Su et al. 2021, equation 15)."""
    return np.array([theta ** (-2.0 * i / channels) for i in range(channels // 2)])


def test_llama3_stretches_long_wavelengths():
    """Below 8192/4 tokens a wavelength stays; above 8192/1 it is eight times as long."""
    expected = []
    for frequency in plain(500_000.0, 128):
        wavelength = 2 * math.pi / frequency
        if wavelength < 2048:
            expected.append(frequency)
        elif wavelength > 8192:
            expected.append(frequency / 8)
        else:
            smooth = (8192 / wavelength - 1) / (4 - 1)
            expected.append((1 - smooth) * frequency / 8 + smooth * frequency)
    found = np.asarray(layers.rope_frequencies(LLAMA31))
    np.testing.assert_allclose(found, expected, rtol=2e-5)
    # All three kinds are there: 8192 / 4 and 8192 tokens are the wavelengths of i = 28.2 and 35.0.
    ratio = plain(500_000.0, 128) / found
    kept, stretched = np.sum(ratio < 1.0001), np.sum(ratio > 7.999)
    assert (kept, stretched, 64 - kept - stretched) == (29, 29, 6)


@pytest.mark.parametrize("kind", ["global", "local"])
def test_linear_scaling_divides_positions(kind):
    """So 8 times the distance turns as far (Chen et al. 2023, equation 4)."""
    rope = Rope(1e6, scaling="linear", factor=8.0)
    config = models.llama(vocab_size=8, num_layers=1, embed_dim=32, num_heads=2, rope=rope)
    found = layers.rope_frequencies(config, kind)
    np.testing.assert_allclose(found, plain(1e6, 16) / 8, rtol=2e-5)


def test_local_layers_with_a_base_of_their_own_are_not_stretched():
    """As in Gemma 3."""
    rope = Rope(1e6, local_theta=1e4, scaling="linear", factor=8.0)
    config = models.gemma3(vocab_size=8, num_layers=1, embed_dim=32, num_heads=2, rope=rope)
    local, whole = (np.asarray(layers.rope_frequencies(config, k)) for k in ("local", "global"))
    np.testing.assert_allclose(local, plain(1e4, 16), rtol=2e-5)
    np.testing.assert_allclose(whole, plain(1e6, 16) / 8, rtol=2e-5)


def test_scores_depend_on_distances_alone():
    """Of a rotated query and key, for stretched rotations too; and not on theirs alone."""
    config = dataclasses.replace(LLAMA31, embed_dim=64, num_heads=4, attention=Attention())
    random = np.random.default_rng(0)
    query, key = random.normal(size=(2, 1, 1, 1, 16)).astype(np.float32)

    def score(at, distance):
        positions = np.array([[at]]), np.array([[at - distance]])
        tables = [layers.rope_tables(place, config) for place in positions]
        return np.sum(layers.rope(query, tables[0]) * layers.rope(key, tables[1]))

    np.testing.assert_allclose(score(900, 37), score(60, 37), atol=1e-3)
    assert abs(score(60, 37) - score(60, 36)) > 0.01
