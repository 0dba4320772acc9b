"""Law 6: logits, loss and every gradient are those of transformers, on random tiny models."""

import dataclasses

import numpy as np
import pytest

from llmjax import models
from tools.make_goldens import CONFIGS, FOLDER, GRADIENTS
from tools.make_goldens import compute as transformers_compute

pytestmark = pytest.mark.parity

pytest.importorskip("torch")
pytest.importorskip("transformers")

VARIANTS = CONFIGS | {
    "gpt2, deep and untied": models.gpt2(
        vocab_size=40,
        num_layers=4,
        embed_dim=24,
        num_heads=3,
        mlp_dim=40,
        max_length=12,
        tied=False,
        dropout=models.Dropout(),
    ),
    "gpt2, one head": models.gpt2(
        vocab_size=40, num_layers=1, embed_dim=8, num_heads=1, norm_epsilon=1e-3
    ),
    "llama, tied, one key head": dataclasses.replace(CONFIGS["llama"], tied=True, num_kv_heads=1),
    "llama, wide heads": dataclasses.replace(CONFIGS["llama"], head_dim=10, num_kv_heads=4),
    "llama 3's rotation": dataclasses.replace(
        CONFIGS["llama"], rope_theta=500_000.0, norm_epsilon=1e-6, num_layers=3
    ),
    "llama, unrolled and rematerialised": dataclasses.replace(
        CONFIGS["llama"], scan_layers=False, remat="full"
    ),
}


@pytest.mark.parametrize("name", VARIANTS)
def test_equals_transformers(name, compute, assert_close):
    expected = transformers_compute(VARIANTS[name])
    tokens = expected.pop("tokens")
    actual = compute(VARIANTS[name], tokens)
    # Both ways: every weight of the one has a gradient in the other.
    assert set(actual) == set(expected)
    assert_close(actual, expected)


@pytest.mark.parametrize("family", CONFIGS)
def test_goldens_are_what_transformers_computes(family):
    expected = transformers_compute(CONFIGS[family], GRADIENTS[family])
    with np.load(FOLDER / f"{family}.npz") as golden:
        assert set(golden) == set(expected)
        for name, value in expected.items():
            np.testing.assert_allclose(golden[name], value, rtol=1e-5, atol=1e-6, err_msg=name)
