"""Operations are those that one counts by hand, and those that the compiler counts."""

import jax
import jax.numpy as jnp

from llmjax import models, planning
from llmjax import spec as specs


def test_gpt2_by_hand() -> None:
    """Benchmark W1: 6 layers of width 384, tied head of 8192; positions are only looked up."""
    config = models.gpt2(vocab_size=8192, num_layers=6, embed_dim=384, num_heads=6, max_length=256)
    D, F = 384, 4 * 384
    attention = 4 * D * D + 4 * D
    mlp = 2 * D * F + F + D
    norms = 4 * D
    N = 6 * (attention + mlp + norms) + 2 * D + 8192 * D
    assert planning.matmul_params(config) == N
    assert specs.count(models.spec(config)) == N + 256 * D
    assert planning.training_flops(config, 256) == 6 * N + 6 * 6 * 256 * 384


def test_llama_by_hand() -> None:
    """Benchmark W2: untied, so the head counts and the embedding does not; grouped heads."""
    config = models.llama(
        vocab_size=32000,
        num_layers=8,
        embed_dim=512,
        num_heads=8,
        num_kv_heads=4,
        mlp_dim=1408,
        max_length=512,
    )
    D, F = 512, 1408
    N = 8 * (2 * D * D + 2 * D * 256 + 3 * D * F + 2 * D) + D + 32000 * D
    assert planning.matmul_params(config) == N
    assert planning.forward_flops(config, 512) == 2 * N + 2 * 8 * 512 * 512


def test_the_compiler_counts_as_much() -> None:
    """XLA counts the whole square of attention, and elementwise work on top."""
    config = models.llama(
        vocab_size=512,
        num_layers=2,
        embed_dim=256,
        num_heads=4,
        mlp_dim=512,
        max_length=64,
        scan_layers=False,
    )
    shape = (2, 64)

    def forward(params, tokens):
        hidden, _ = models.apply(params, tokens, config)
        return models.logits(params, hidden, config)

    params = specs.abstract(models.spec(config))
    tokens = jax.ShapeDtypeStruct(shape, jnp.int32)
    compiled = jax.jit(forward).lower(params, tokens).compile()
    counted = compiled.cost_analysis()["flops"] / (shape[0] * shape[1])
    assert 0.95 < planning.forward_flops(config, 64) / counted < 1.03
