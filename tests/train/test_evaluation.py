"""Perplexity and bits per byte equal their definitions in numpy."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from llmjax import mesh
from llmjax.evaluation import evaluate
from llmjax.objectives import Weighted

V = 11
TOKEN_BYTES = np.array([0, 0, 1, 1, 1, 2, 3, 4, 5, 2, 7])
TRACES = []


def bigram_loss(params, batch, key):
    assert key is None
    TRACES.append(1)
    log_probs = jax.nn.log_softmax(params)[batch["tokens"]]
    picked = (log_probs * jax.nn.one_hot(batch["targets"], V)).sum()  # one_hot(-1) is zero
    return Weighted(-picked, jnp.sum(batch["targets"] >= 0, dtype=jnp.float32)), {}


def make_batches(count: int, seed: int = 0) -> list[dict[str, np.ndarray]]:
    generator = np.random.default_rng(seed)
    return [
        {
            "tokens": generator.integers(0, V, (8, 5), dtype=np.int32),
            "targets": generator.integers(-1, V, (8, 5), dtype=np.int32),
        }
        for _ in range(count)
    ]


def test_equals_the_definition():
    params = np.random.default_rng(1).normal(size=(V, V)).astype(np.float32)
    batches = make_batches(5)
    result = evaluate(bigram_loss, jnp.asarray(params), iter(batches), TOKEN_BYTES)

    exact = params.astype(np.float64)
    log_probs = exact - np.log(np.exp(exact).sum(-1, keepdims=True))
    tokens = np.concatenate([b["tokens"].ravel() for b in batches])
    targets = np.concatenate([b["targets"].ravel() for b in batches])
    tokens, targets = tokens[targets >= 0], targets[targets >= 0]
    nats = -log_probs[tokens, targets].sum()
    assert result["tokens"] == len(targets)
    assert result["bytes"] == TOKEN_BYTES[targets].sum()
    assert result["validation_loss"] == pytest.approx(nats / len(targets), rel=1e-6)
    assert result["perplexity"] == pytest.approx(math.exp(nats / len(targets)), rel=1e-6)
    bits = nats / math.log(2) / TOKEN_BYTES[targets].sum()
    assert result["bits_per_byte"] == pytest.approx(bits, rel=1e-6)


def test_neither_order_nor_cut_nor_mesh_matters_and_it_compiles_once():
    params = jnp.zeros((V, V)).at[2].set(1.0)
    batches = make_batches(4)
    first = evaluate(bigram_loss, params, batches, TOKEN_BYTES)
    TRACES.clear()
    assert evaluate(bigram_loss, params, batches[::-1], TOKEN_BYTES) == first
    assert not TRACES
    joined = {name: np.concatenate([b[name] for b in batches]) for name in batches[0]}
    assert evaluate(bigram_loss, params, [joined], TOKEN_BYTES) == pytest.approx(first, rel=1e-5)


def test_a_mesh_gives_the_same():
    def loss(params, batch, _):
        return Weighted(params * (batch["targets"] > 3).sum(), (batch["targets"] >= 0).sum()), {}

    batches = make_batches(3)
    alone = evaluate(loss, jnp.float32(2.5), batches, TOKEN_BYTES)
    with jax.set_mesh(mesh.make_mesh(mesh.MeshConfig(data=2, fsdp=4))):
        assert evaluate(loss, jnp.float32(2.5), batches, TOKEN_BYTES) == alone


@pytest.mark.parametrize("targets", [None, -1, 0])
def test_nothing_to_evaluate_is_answered(targets):
    batch = {"tokens": np.zeros((8, 2), np.int32), "targets": np.full((8, 2), targets or 0)}
    batch["targets"] = batch["targets"].astype(np.int32)
    with pytest.raises(ValueError, match="nothing to evaluate"):
        evaluate(bigram_loss, jnp.zeros((V, V)), [] if targets is None else [batch], TOKEN_BYTES)
