"""Recipes of Llama and similar models at published sizes, for pods."""

import dataclasses

from experiments.recipe import Recipe
from llmjax import models
from llmjax.data.config import DataConfig, Source, TokenizerConfig
from llmjax.mesh import MeshConfig
from llmjax.optim.config import OptimizerConfig


def llama3_8b() -> Recipe:
    """Llama 3 8B on 15 trillion tokens, four million per step, on a pod; text in data/web.

    Sizes, peak rate and warm-up are those of the Llama team 2024, "The Llama 3 Herd of Models",
    table 3 and section 3.4; the decay is a plain cosine.
    """
    batch_size, sequence_length = 512, 8192
    return Recipe(
        name="llama3_8b",
        model=models.llama(
            vocab_size=128_256,
            num_layers=32,
            embed_dim=4096,
            num_heads=32,
            num_kv_heads=8,
            mlp_dim=14336,
            max_length=sequence_length,
            rope=models.Rope(500_000.0),
            remat="full",
        ),
        data=DataConfig(
            sources=(Source("web", "data/web"),), tokenizer=TokenizerConfig(vocab_size=128_256)
        ),
        optimizer=OptimizerConfig(learning_rate=3e-4, warmup_steps=8000),
        mesh=MeshConfig(data=1, fsdp=-1),
        steps=15_000_000_000_000 // (batch_size * sequence_length),
        batch_size=batch_size,
        sequence_length=sequence_length,
        evaluate_every=1000,
        evaluate_batches=16,
        checkpoint_every=500,
    )


def llama3_70b() -> Recipe:
    """Llama 3 70B, otherwise like llama3_8b; sizes and rate are from the same table."""
    smaller = llama3_8b()
    return dataclasses.replace(
        smaller,
        name="llama3_70b",
        model=dataclasses.replace(
            smaller.model, num_layers=80, embed_dim=8192, num_heads=64, mlp_dim=28672
        ),
        optimizer=OptimizerConfig(learning_rate=1.5e-4, warmup_steps=8000),
    )


def mixtral_8x7b() -> Recipe:
    """Eight experts per layer, two per token, over eight devices; otherwise like llama3_8b.

    The sizes are Mixtral 8x7B's (Jiang et al. 2024, table 1). The blocks are Qwen 3's, which also
    have norms on queries and keys.
    """
    smaller = llama3_8b()
    return dataclasses.replace(
        smaller,
        name="mixtral_8x7b",
        model=models.qwen3_moe(
            vocab_size=32_000,
            num_layers=32,
            embed_dim=4096,
            num_heads=32,
            num_kv_heads=8,
            head_dim=128,
            mlp_dim=14336,
            max_length=smaller.sequence_length,
            experts=models.Experts(count=8, per_token=2, dim=14336, balance=0.02),
            remat="full",
        ),
        data=dataclasses.replace(smaller.data, tokenizer=TokenizerConfig(vocab_size=32_000)),
        mesh=MeshConfig(data=1, fsdp=-1, expert=8),
    )
