"""Recipes of models that two CPU cores train in minutes."""

from experiments.recipe import Recipe
from llmjax import models
from llmjax.data import corpora
from llmjax.data.cleaning.config import CleaningConfig
from llmjax.data.config import DataConfig, TokenizerConfig
from llmjax.optim.config import OptimizerConfig


def tiny() -> Recipe:
    """The shortest real run: bytes of Python's manual, under a tenth of a second per step."""
    return Recipe(
        name="tiny",
        model=models.llama(
            vocab_size=260, num_layers=2, embed_dim=64, num_heads=4, mlp_dim=192, max_length=256
        ),
        data=DataConfig(tokenizer=TokenizerConfig(kind="bytes"), validation_share=0.05),
        corpus="python_topics",
        optimizer=OptimizerConfig(learning_rate=3e-3, warmup_steps=20),
        steps=200,
        batch_size=8,
        sequence_length=64,
        evaluate_every=100,
        evaluate_batches=8,
        checkpoint_every=100,
        sample_every=100,
    )


def quickstart() -> Recipe:
    """Human conversation, in about four minutes on two cores."""
    return Recipe(
        name="quickstart",
        model=models.llama(
            vocab_size=4096,
            num_layers=4,
            embed_dim=192,
            num_heads=4,
            mlp_dim=512,
            max_length=512,
            tied=True,
            remat="dots",
            scan_layers=False,
        ),
        data=DataConfig(
            tokenizer=TokenizerConfig(vocab_size=4096, symbols=corpora.SPEAKERS),
            validation_share=0.02,
            cleaning=CleaningConfig(
                steps=("repair", "language", "exact_duplicates", "near_duplicates", "personal_data")
            ),
        ),
        corpus="chitchat",
        optimizer=OptimizerConfig(name="muon", learning_rate=3e-3, schedule="wsd", warmup_steps=20),
        steps=480,
        batch_size=32,
        sequence_length=128,
        evaluate_every=120,
        evaluate_batches=16,
        checkpoint_every=120,
        sample_every=120,
        sample_prompt=corpora.chat_prompt(["Hi! What did you do today?"]),
    )
