"""How layers are run changes nothing in any family, and specs declare what real models have."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from llmjax import models, tree
from llmjax import spec as specs
from llmjax.models import Attention, Embedding
from tools.golden_models import CONFIGS

BERT = {"num_layers": 12, "embed_dim": 768, "num_heads": 12}
LLAMA_7B = {"num_layers": 32, "embed_dim": 4096, "num_heads": 32, "mlp_dim": 11008}
LLAMA_8B = LLAMA_7B | {"num_kv_heads": 8, "mlp_dim": 14336}
QWEN3 = {"vocab_size": 151936, "num_kv_heads": 8, "head_dim": 128}
MODERN = {"num_layers": 22, "embed_dim": 768, "num_heads": 12, "mlp_dim": 1152}
NARROW = Embedding(dim=128, norm=True, token_types=2)

# The sizes of released models, and how many numbers their checkpoints hold.
RELEASED = {
    "gpt2": (models.gpt2(vocab_size=50257, **BERT), 124_439_808),
    "Llama-2-7b": (models.llama(vocab_size=32000, **LLAMA_7B), 6_738_415_616),
    "Llama-3-8B": (models.llama(vocab_size=128256, **LLAMA_8B), 8_030_261_248),
    "Mistral-7B-v0.1": (models.mistral(vocab_size=32000, **LLAMA_8B), 7_241_732_096),
    "Qwen2-7B": (
        models.qwen2(
            vocab_size=152064,
            num_layers=28,
            embed_dim=3584,
            num_heads=28,
            num_kv_heads=4,
            mlp_dim=18944,
        ),
        7_615_616_512,
    ),
    "Qwen2.5-0.5B": (
        models.qwen2(
            vocab_size=151936,
            num_layers=24,
            embed_dim=896,
            num_heads=14,
            num_kv_heads=2,
            mlp_dim=4864,
            tied=True,
        ),
        494_032_768,
    ),
    "Qwen3-0.6B": (
        models.qwen3(num_layers=28, embed_dim=1024, num_heads=16, mlp_dim=3072, tied=True, **QWEN3),
        596_049_920,
    ),
    "Qwen3-8B": (
        models.qwen3(num_layers=36, embed_dim=4096, num_heads=32, mlp_dim=12288, **QWEN3),
        8_190_735_360,
    ),
    "Qwen3-30B-A3B": (
        models.qwen3_moe(
            num_layers=48, embed_dim=2048, num_heads=32, **QWEN3 | {"num_kv_heads": 4}
        ),
        30_532_122_624,
    ),
    "gemma-2-2b": (
        models.gemma2(
            vocab_size=256000,
            num_layers=26,
            embed_dim=2304,
            num_heads=8,
            num_kv_heads=4,
            head_dim=256,
            mlp_dim=9216,
        ),
        2_614_341_888,
    ),
    "gemma-3-1b": (
        models.gemma3(
            vocab_size=262144,
            num_layers=26,
            embed_dim=1152,
            num_heads=4,
            num_kv_heads=1,
            head_dim=256,
            mlp_dim=6912,
        ),
        999_885_952,
    ),
    "OLMo-2-7B": (models.olmo2(vocab_size=100352, **LLAMA_7B), 7_298_617_344),
    # With the pooler, without the head.
    "bert-base-uncased": (
        models.with_head(models.bert(vocab_size=30522, **BERT), "none"),
        109_482_240,
    ),
    "roberta-base": (
        models.with_head(models.roberta(vocab_size=50265, **BERT), "none"),
        124_645_632,
    ),
    "electra-small-discriminator": (
        models.electra(
            vocab_size=30522, num_layers=12, embed_dim=256, num_heads=4, embedding=NARROW
        ),
        13_549_057,
    ),
    "deberta-v3-base": (
        models.with_head(models.deberta(vocab_size=128100, **BERT), "none"),
        183_831_552,
    ),
    "ModernBERT-base": (models.modernbert(vocab_size=50368, **MODERN), 149_655_232),
    "ModernBERT-base, no head": (
        models.with_head(models.modernbert(vocab_size=50368, **MODERN), "none"),
        149_014_272,
    ),
}


@pytest.mark.parametrize("name", RELEASED)
def test_as_many_parameters_as_the_released_model_has(name):
    config, count = RELEASED[name]
    assert specs.count(models.spec(config)) == count


@pytest.fixture(scope="module")
def compute(documents):
    """`compute(config, params)`: hidden states, and the gradient of a sum over them."""

    def run(config, params):
        batch = documents(config)
        rest = {name: values for name, values in batch.items() if name != "tokens"}

        @jax.jit
        def both(params):
            def total(params):
                hidden, _ = models.apply(params, batch["tokens"], config, **rest)
                return jnp.sum(jnp.sin(hidden)), hidden

            return jax.grad(total, has_aux=True)(params)

        gradient, hidden = both(params)
        if isinstance(gradient["layers"], list):
            gradient = gradient | {"layers": tree.stack(gradient["layers"])}
        return hidden, gradient

    return run


def test_loops_and_rematerialisation_change_nothing(draw, compute):
    """With a pattern of two, and a layer that remains; experts have such a test of their own."""
    config = dataclasses.replace(CONFIGS["gemma3"], num_layers=5)
    params = draw(models.spec(config))
    listed = params | {"layers": tree.unstack(params["layers"])}
    expected = compute(config, params)

    def check(actual, expected):
        limit = 1e-4 * max(np.abs(expected).max(), 1e-2)
        np.testing.assert_allclose(actual, expected, rtol=0, atol=limit)

    for remat, weights in (("full", params), ("dots", listed)):
        changed = dataclasses.replace(config, remat=remat, scan_layers=weights is params)
        jax.tree.map(check, compute(changed, weights), expected)


def test_a_pattern_longer_than_the_model(draw, documents, hidden_of):
    attention = Attention(pattern=("local", "global", "local", "local"), window=3)
    config = dataclasses.replace(CONFIGS["mistral"], num_layers=2, attention=attention)
    shorter = dataclasses.replace(attention, pattern=("local", "global"))
    params, batch = draw(models.spec(config)), documents(config)
    expected = hidden_of(dataclasses.replace(config, attention=shorter), params, batch)
    np.testing.assert_allclose(hidden_of(config, params, batch), expected, rtol=0, atol=1e-5)
