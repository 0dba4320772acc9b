"""Soft-capped scores and logits (Gemma 2; Riviere et al. 2024, section 2)."""

import jax
import jax.numpy as jnp


def bend(scores: jax.Array, cap: float) -> tuple[jax.Array, jax.Array | float]:
    """cap·tanh(scores / cap) and its derivative; the scores themselves if the cap is 0."""
    if not cap:
        return scores, 1.0
    bent = jnp.tanh(scores / cap)
    return cap * bent, 1.0 - jnp.square(bent)
