"""Law 2 for every family: packed documents equal those alone, and know nothing of each other."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from llmjax import models
from tools.golden_models import CONFIGS, VARIANTS

FAMILIES = CONFIGS | {
    name: VARIANTS[name]
    for name in (
        "gemma3, five to one",
        "deberta, v2-xlarge",
        "deberta, positions of their own",
        "deberta, one term",
    )
}


def places(batch):
    """The row and the columns of every document."""
    return [
        (row, np.flatnonzero(segments == segment))
        for row, segments in enumerate(batch["segment_ids"])
        for segment in np.unique(segments[segments > 0])
    ]


def alone(batch):
    """Batches of the same shape: each document in a row of its own, from the left, padding behind.

    So does transformers compute the goldens; the padding is junk.
    """
    where = places(batch)
    rows = {
        name: np.full((len(where), values.shape[1]), 0 if name == "segment_ids" else 1, np.int32)
        for name, values in batch.items()
    }
    for index, (row, columns) in enumerate(where):
        for name, values in batch.items():
            here = 1 if name == "segment_ids" else values[row, columns]
            rows[name][index, : len(columns)] = here
    count = len(batch["tokens"])
    return [
        {name: values[start : start + count] for name, values in rows.items()}
        for start in range(0, len(where), count)
    ]


@pytest.mark.parametrize("name", FAMILIES)
def test_packed_documents_are_as_alone(name, draw, documents, hidden_of):
    config, batch = FAMILIES[name], documents(FAMILIES[name])
    params = draw(models.spec(config))
    packed = hidden_of(config, params, batch)
    expected = np.concatenate([hidden_of(config, params, rows) for rows in alone(batch)])
    for (row, columns), document in zip(places(batch), expected, strict=True):
        found = packed[row, columns]
        np.testing.assert_allclose(found, document[: len(columns)], rtol=0, atol=5e-5)


@pytest.mark.parametrize("name", FAMILIES)
def test_documents_know_nothing_of_each_other(name, draw, documents, hidden_of):
    """Nor of the padding: a token that changes moves its own document, and no other at all."""
    config, batch = FAMILIES[name], documents(FAMILIES[name])
    params = draw(models.spec(config))
    before = hidden_of(config, params, batch)

    def change(where):
        """Where hidden states move as the tokens there become others."""
        tokens = batch["tokens"].copy()
        tokens[where] = tokens[where] % (config.vocab_size - 1) + 1
        after = hidden_of(config, params, batch | {"tokens": tokens})
        return np.abs(after - before).max(axis=-1)

    segments = batch["segment_ids"]
    assert change(segments == 0)[segments != 0].max() < 1e-6
    for digit in (2, 1):
        own = segments == digit
        second = own & (batch["positions"] == 1)
        moved = change(second)
        assert moved[~own & (segments != 0)].max() < 1e-6
        first = own & (batch["positions"] == 0)
        if config.attention.causal:
            assert moved[first].max() < 1e-6
        else:
            assert moved[first].min() > 1e-4
        assert moved[own & ~first].min() > 1e-4


@pytest.mark.parametrize("name", ["qwen3_moe", "gemma3", "deberta, v2-xlarge"])
def test_gradients_of_packed_documents_are_as_alone(name, draw, documents):
    config, batch = FAMILIES[name], documents(FAMILIES[name])
    params = draw(models.spec(config))

    @jax.jit
    @jax.grad
    def gradient(params, batch):
        rest = {name: values for name, values in batch.items() if name != "tokens"}
        hidden, _ = models.apply(params, batch["tokens"], config, **rest)
        # Weights by place in the document, which is the same packed or not.
        weights = jnp.sin(1.0 + batch["positions"])[..., None] * jnp.arange(hidden.shape[-1])
        there = (batch["segment_ids"] != 0)[..., None]
        return jnp.sum(jnp.where(there, weights * hidden, 0.0))

    packed = gradient(params, batch)
    parts = [gradient(params, rows) for rows in alone(batch)]
    expected = jax.tree.map(lambda *leaves: np.sum(leaves, axis=0), *parts)

    def check(actual, expected):
        limit = 1e-4 * max(np.abs(expected).max(), 1e-2)
        np.testing.assert_allclose(actual, expected, rtol=0, atol=limit)

    jax.tree.map(check, packed, expected)
