"""Llama at published sizes, for pods."""

from experiments.recipe import Recipe
from llmjax import models
from llmjax.data.config import DataConfig, Source, TokenizerConfig
from llmjax.mesh import MeshConfig
from llmjax.optim.config import OptimizerConfig


def llama3_8b() -> Recipe:
    """Llama 3 8B on 15 trillion tokens, four million a step, over a pod; text in data/web.

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
