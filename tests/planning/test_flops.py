"""Operations are those that one counts by hand, and those that the compiler counts."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from llmjax import lookup, models, objectives, planning
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


def bidirectional(**fields) -> models.ModelConfig:
    """A small BERT without a next-sentence head."""
    sizes = {"vocab_size": 512, "num_layers": 2, "embed_dim": 256, "num_heads": 4, "mlp_dim": 512}
    return models.bert(**(sizes | {"max_length": 64, "scan_layers": False} | fields))


def test_bert_by_hand() -> None:
    """All pairs count; positions and token types are looked up; the head reads a share."""
    config = bidirectional()
    D, F, V, S = 256, 512, 512, 64
    block = 4 * D * D + 4 * D + 2 * D * F + F + D + 4 * D
    body, head = 2 * block + 2 * D, D * D + D + 2 * D + V * D + V
    assert planning.matmul_params(config) == body + head
    attention = 2 * 4 * S * D
    assert planning.forward_flops(config, S) == 2 * (body + head) + attention
    assert planning.forward_flops(config, S, 0.25) == 2 * (body + head / 4) + attention
    masking = objectives.MaskingConfig(rate=0.15)  # 10 of 64
    expected = 3 * (2 * (body + head * 10 / S) + attention)
    assert planning.mlm_flops(config, S, masking) == pytest.approx(expected)


def test_rtd_is_generator_and_discriminator() -> None:
    discriminator = models.electra(
        vocab_size=512, num_layers=2, embed_dim=256, num_heads=4, mlp_dim=512, max_length=64
    )
    generator = objectives.generator_config(discriminator, 0.25)
    D, F, S, G = 256, 512, 64, 64

    def body(width, inner):
        block = 4 * width * width + 4 * width + 2 * width * inner + inner + width + 4 * width
        return 2 * block + 2 * D  # the norm of the embeddings is of their width

    found = 2 * (body(D, F) + D * D + D + D + 1) + 2 * 4 * S * D
    projected = D * G + G
    head = G * D + D + 2 * D + 512 * D + 512
    proposed = 2 * (body(G, F // 4) + projected + head * 10 / S) + 2 * 4 * S * G
    flops = planning.rtd_flops(generator, discriminator, S)
    assert flops == pytest.approx(3 * (found + proposed))


def test_windows_are_counted_pair_by_pair() -> None:
    for causal in (True, False):
        for window in (1, 5, 16, 40):
            attention = models.Attention(causal=causal, pattern=("local",), window=window)
            local = bidirectional(attention=attention)
            whole = dataclasses.replace(local, attention=models.Attention(causal=False))
            distance = np.subtract.outer(np.arange(16), np.arange(16))
            seen = np.abs(distance) < window
            pairs = seen.sum() / 16
            if causal:  # a token's own place counts as half, as in half of the full square
                pairs = (seen & (distance > 0)).sum() / 16 + 0.5 * seen.diagonal().sum() / 16
            difference = planning.forward_flops(whole, 16) - planning.forward_flops(local, 16)
            assert difference == pytest.approx(2 * 4 * 256 * (16 - pairs)), (causal, window)


def test_only_the_chosen_experts_count() -> None:
    config = models.qwen3_moe(
        vocab_size=512,
        num_layers=2,
        embed_dim=64,
        num_heads=4,
        max_length=64,
        experts=models.Experts(count=8, per_token=2, dim=32),
    )
    more = dataclasses.replace(config, experts=dataclasses.replace(config.experts, per_token=4))
    difference = planning.matmul_params(more) - planning.matmul_params(config)
    assert difference == 2 * 2 * 3 * 64 * 32


def test_deberta_pays_for_positions_and_its_mask_decoder() -> None:
    sizes = {"vocab_size": 512, "num_layers": 2, "embed_dim": 64, "num_heads": 4, "max_length": 64}
    plain = models.deberta(**sizes)
    content = dataclasses.replace(plain, disentangled=models.Disentangled())
    terms = planning.forward_flops(plain, 32) - planning.forward_flops(content, 32)
    assert terms == 2 * 2 * (2 * 32 * 64)  # layers, terms, a product of S vectors each
    twice = dataclasses.replace(
        plain, disentangled=dataclasses.replace(plain.disentangled, mask_decoder=2)
    )
    block = 4 * 64 * 64 + 4 * 64 + 2 * 64 * 256 + 256 + 64 + 4 * 64
    added = planning.forward_flops(twice, 32) - planning.forward_flops(plain, 32)
    assert added == 2 * block + 4 * (2 * 32 * 64)


def test_heads_of_sequences_read_one_token_of_each() -> None:
    config = models.with_head(bidirectional(), "classification", labels=3)
    none = models.with_head(bidirectional(), "tokens", labels=3)
    head, other = 256 * 256 + 256 + 3 * 256 + 3, 3 * 256 + 3
    difference = planning.forward_flops(config, 64) - planning.forward_flops(none, 64)
    assert difference == pytest.approx(2 * head / 64 - 2 * other)


@pytest.mark.parametrize(
    ("sizes", "published"),
    [
        ({"embed_dim": 256, "num_heads": 4, "embedding": 128}, 3.7e9),
        ({"embed_dim": 768, "num_heads": 12, "embedding": 0}, 2.9e10),
    ],
    ids=["ELECTRA-Small", "ELECTRA-Base"],
)
def test_published_inference(sizes, published) -> None:
    """Clark et al. 2020, table 1: a sequence of 128, look-ups counted as products."""
    embedding = models.Embedding(dim=sizes.pop("embedding"), norm=True, token_types=2)
    config = models.electra(vocab_size=30522, num_layers=12, embedding=embedding, **sizes)
    look_up = 2 * 30522 * config.table_dim
    assert 128 * (planning.forward_flops(config, 128) + look_up) == pytest.approx(
        published, rel=0.03
    )


@pytest.mark.parametrize("family", ["bert", "electra", "deberta"])
def test_the_compiler_counts_as_much_of_encoders(family) -> None:
    """The head at 16 of 64 positions; on top XLA counts elementwise work.

    Of DeBERTa also the projection of relative positions, which the rows of a batch share, and
    products with both sides' distances, of which a token needs one half.
    """
    make = getattr(models, family)
    config = models.with_head(
        make(
            vocab_size=512,
            num_layers=2,
            embed_dim=256,
            num_heads=2,
            mlp_dim=1024,
            max_length=64,
            scan_layers=False,
            embedding=models.Embedding(norm=True, dim=128 if family == "electra" else 0),
            dropout=models.Dropout(),
        ),
        "mlm",
    )

    def forward(params, tokens, positions):
        hidden, _ = models.apply(params, tokens, config)
        return models.logits(params, lookup.gather_positions(hidden, positions), config)

    params = specs.abstract(models.spec(config))
    arguments = (jax.ShapeDtypeStruct((64, n), jnp.int32) for n in (64, 16))
    compiled = jax.jit(forward).lower(params, *arguments).compile()
    counted = compiled.cost_analysis()["flops"] / (64 * 64)
    share = planning.forward_flops(config, 64, 16 / 64) / counted
    assert (0.88 if family == "deberta" else 0.95) < share < 1.03
