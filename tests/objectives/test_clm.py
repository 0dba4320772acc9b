"""Causal language modelling: what comes on top of the cross entropy, which tests/parity judges."""

import dataclasses

import numpy as np
import pytest

from llmjax import models
from llmjax.objectives import clm

CONFIG = models.qwen3_moe(
    vocab_size=64,
    num_layers=2,
    embed_dim=16,
    num_heads=4,
    experts=models.Experts(count=4, per_token=2, dim=8, balance=0.1),
)


def test_a_mixture_of_experts_pays_for_imbalance(draw):
    """By the definition, from the router's choices of both layers: E Σ f P for every target."""
    params = draw(models.spec(CONFIG))
    tokens = np.random.RandomState(0).randint(0, 64, (2, 9)).astype(np.int32)
    batch = {"tokens": tokens, "targets": np.roll(tokens, -1, axis=1)}
    batch["targets"][:, -1] = -1
    free = dataclasses.replace(CONFIG, experts=dataclasses.replace(CONFIG.experts, balance=0.0))
    loss, metrics = clm(CONFIG)(params, batch, None)
    without, _ = clm(free)(params, batch, None)

    routing = models.forward(params, tokens, CONFIG).routing
    copies, chances = np.asarray(routing.copies), np.asarray(routing.probabilities)
    assert copies.sum() == 2 * 2 * tokens.size  # two experts for each token in two layers
    np.testing.assert_allclose(chances.sum(), 2 * tokens.size, rtol=1e-5)
    balance = 4 * np.sum(copies / (2 * tokens.size) * chances / (2 * tokens.size))
    assert loss.weight == 16
    np.testing.assert_allclose(loss.sum - without.sum, 0.1 * balance * 16, rtol=1e-3)
    np.testing.assert_allclose(metrics["balance"], balance * 16, rtol=1e-5)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (models.with_head(CONFIG, "reward"), "head.kind=lm, not reward"),
        (dataclasses.replace(CONFIG, attention=models.Attention(causal=False)), "causal=False"),
    ],
)
def test_other_models_are_refused(config, message):
    with pytest.raises(ValueError, match=message):
        clm(config)
