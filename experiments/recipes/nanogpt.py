"""A published configuration for comparing convergence."""

from experiments.recipe import Recipe
from llmjax import models
from llmjax.data.config import DataConfig, TokenizerConfig
from llmjax.optim import OptimizerConfig, Rule


def nanogpt_cpu() -> Recipe:
    """The published CPU run of nanoGPT: 4 layers of width 128 on characters, 2000 steps.

    The settings are those in nanoGPT's README for a laptop without a GPU
    (config/train_shakespeare_char.py with --block_size=64 --batch_size=12 --n_layer=4 --n_head=4
    --n_embd=128 --max_iters=2000 --lr_decay_iters=2000 --dropout=0.0). As in nanoGPT, matrices and
    embeddings are decayed, there are no biases, and GELU is exact. Tokens are bytes, which are
    characters in ASCII text.
    """
    return Recipe(
        name="nanogpt_cpu",
        model=models.gpt2(
            vocab_size=260,
            num_layers=4,
            embed_dim=128,
            num_heads=4,
            max_length=64,
            activation="gelu",
            bias="none",
            dropout=models.Dropout(),
        ),
        data=DataConfig(tokenizer=TokenizerConfig(kind="bytes"), validation_share=0.1),
        corpus="python_topics",
        optimizer=OptimizerConfig(
            learning_rate=1e-3,
            schedule="cosine",
            warmup_steps=100,
            final_share=0.1,
            beta1=0.9,
            beta2=0.99,
            weight_decay=0.1,
            decays=(Rule("bias$|norm/", 0.0),),
            clip_norm=1.0,
        ),
        steps=2000,
        batch_size=12,
        sequence_length=64,
        packing="windows",
        evaluate_every=250,
        evaluate_batches=20,
        checkpoint_every=500,
    )
