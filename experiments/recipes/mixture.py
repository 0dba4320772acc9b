"""Recipes with several kinds of text in fixed shares."""

from experiments.recipe import Recipe
from llmjax import models
from llmjax.data.config import DataConfig, Source, TokenizerConfig
from llmjax.optim.config import OptimizerConfig

# Midpoints of the ranges in the chapter's table of data sources.
SHARES = {
    "web": 0.65,
    "books": 0.125,
    "academic": 0.075,
    "news": 0.05,
    "reference": 0.035,
    "code": 0.065,
}


def chapter_mixture() -> Recipe:
    """Six kinds of text in the chapter's shares, each in a folder of data/.

    To read other folders with the same shares, give their names:
    `--data.sources=name=web,path=/data/web --data.sources=name=books,path=/data/books ...`
    """
    sources = (Source(name, f"data/{name}", weight=share) for name, share in SHARES.items())
    return Recipe(
        name="chapter_mixture",
        model=models.llama(
            vocab_size=32000,
            num_layers=12,
            embed_dim=768,
            num_heads=12,
            mlp_dim=2048,
            max_length=1024,
            remat="dots",
        ),
        data=DataConfig(sources=tuple(sources), tokenizer=TokenizerConfig(vocab_size=32000)),
        optimizer=OptimizerConfig(learning_rate=6e-4, warmup_steps=700),
        steps=20_000,
        batch_size=256,
        sequence_length=1024,
        evaluate_every=500,
        evaluate_batches=64,
        checkpoint_every=1000,
        sample_every=1000,
    )
