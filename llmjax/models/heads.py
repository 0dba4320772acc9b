"""Heads: functions of hidden states."""

from typing import Any

import jax
import jax.numpy as jnp

from llmjax.models.config import ModelConfig
from llmjax.weights import Weight, einsum


def lm_weight(params: Any, config: ModelConfig) -> Weight:
    """The language-model head [V, D]: the embedding table itself when tied."""
    return params["embedding"] if config.tied else params["head"]


def logits(params: Any, hidden: jax.Array, config: ModelConfig) -> jax.Array:
    """Next-token logits, float32 [B, S, V], of hidden states [B, S, D]."""
    weight = lm_weight(params, config)
    product = einsum("bsd,vd->bsv", hidden, weight, ("batch", "sequence", "vocab"))
    return product.astype(jnp.promote_types(product.dtype, jnp.float32))
