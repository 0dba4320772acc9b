"""Floating-point operations of a model, by the convention of utilisation figures (MFU).

A token costs 2 operations for every parameter that it is multiplied with, and attention on top
(Kaplan et al. 2020, section 2.1; Chowdhery et al. 2022, appendix B). Causal attention counts as
half of the full square, which is what it needs; others count the whole, and get up to a tenth
more. The backward pass costs twice the forward one. Recomputation (remat) does not count.
"""

import math

import jax

from llmjax import models, tree
from llmjax.spec import is_param


def matmul_params(config: models.ModelConfig) -> int:
    """Parameters that every token is multiplied with: all but the tables it only looks up.

    The language-model head counts, tied or not; learned positions and an untied embedding do not.
    """
    looked_up = {"positions"} if config.tied else {"positions", "embedding"}
    spec = models.spec(config)
    params = jax.tree.leaves(spec, is_leaf=is_param)
    return sum(
        math.prod(param.shape)
        for path, param in zip(tree.paths(spec, is_leaf=is_param), params, strict=True)
        if path not in looked_up
    )


def forward_flops(config: models.ModelConfig, sequence_length: int) -> int:
    """Operations of a forward pass for each token of sequences of this length: 2N + 2·L·S·H·C."""
    # Scores and mixing take 2·S·H·C each for a whole row of the square, and half are masked.
    attention = 2 * sequence_length * config.num_heads * config.channels
    return 2 * matmul_params(config) + config.num_layers * attention


def training_flops(config: models.ModelConfig, sequence_length: int) -> int:
    """Operations of a training step for each token: 6N + 6·L·S·H·C."""
    return 3 * forward_flops(config, sequence_length)
