"""Shapes for tools/bench.py, which uses random tokens."""

from experiments.recipe import Recipe
from llmjax import models


def w1() -> Recipe:
    """Benchmark, GPT-2 style: 6 layers of width 384, tied vocabulary of 8192, batch of 16 × 256."""
    return Recipe(
        name="w1",
        model=models.gpt2(
            vocab_size=8192,
            num_layers=6,
            embed_dim=384,
            num_heads=6,
            max_length=256,
            dropout=models.Dropout(),
            remat="dots",
            scan_layers=False,
        ),
        batch_size=16,
        sequence_length=256,
    )


def w2() -> Recipe:
    """Benchmark, Llama style: 8 layers of width 512, untied vocabulary of 32000, batch 4 × 512."""
    return Recipe(
        name="w2",
        model=models.llama(
            vocab_size=32000,
            num_layers=8,
            embed_dim=512,
            num_heads=8,
            num_kv_heads=4,
            mlp_dim=1408,
            max_length=512,
            remat="dots",
            scan_layers=False,
        ),
        batch_size=4,
        sequence_length=512,
    )
