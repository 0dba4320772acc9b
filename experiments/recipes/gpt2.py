"""Recipes of GPT-2 at published sizes, for one machine with several accelerators."""

from experiments.recipe import Recipe
from llmjax import models
from llmjax.data.config import DataConfig, Source, TokenizerConfig
from llmjax.optim.config import OptimizerConfig


def gpt2_small() -> Recipe:
    """GPT-2 small, 124 million parameters, half a million tokens per step; text in data/web.

    Sizes are those of Radford et al. 2019; rate, decay and batch are from nanoGPT's reproduction.
    """
    return Recipe(
        name="gpt2_small",
        model=models.gpt2(
            # The published 50257, rounded up so that the table divides over devices.
            vocab_size=50304,
            num_layers=12,
            embed_dim=768,
            num_heads=12,
            max_length=1024,
            dropout=models.Dropout(),
            remat="dots",
        ),
        data=DataConfig(
            sources=(Source("web", "data/web"),), tokenizer=TokenizerConfig(vocab_size=50257)
        ),
        optimizer=OptimizerConfig(learning_rate=6e-4, warmup_steps=2000),
        steps=600_000,
        batch_size=480,
        sequence_length=1024,
        evaluate_every=1000,
        evaluate_batches=50,
        checkpoint_every=2000,
        sample_every=5000,
    )
