"""How far two policies are apart: estimators from samples, and the exact numbers."""

from typing import Literal, get_args

import jax
import jax.numpy as jnp

KLEstimator = Literal["k1", "k2", "k3"]

# Of exponents: beyond e^20 an importance ratio says only that something is wrong, and its square
# would leave float32.
LARGEST = 20.0


def kl_estimate(log_ratio: jax.Array, kind: KLEstimator) -> jax.Array:
    """An estimate of KL(p ‖ q) from each sample of p, in nats (Schulman 2020, Approximating KL).

    With r = p / q, so that log r is given: k1 is log r, without bias and often below 0; k2 is
    (log r)² / 2, biased and with little variance; k3 is 1/r - 1 + log r, without bias, never below
    0. As a loss over samples of p, k1 has a gradient of 0 on average, k2 that of KL(p ‖ q) and k3
    that of KL(q ‖ p): so k1 is for rewards only.

    Args:
        log_ratio: log p(x) - log q(x), any shape.
        kind: which estimator.

    Raises:
        ValueError: another kind.
    """
    if kind == "k1":
        return log_ratio
    if kind == "k2":
        return 0.5 * log_ratio**2
    if kind == "k3":
        return importance(-log_ratio) - 1 + log_ratio
    raise ValueError(f"KL estimator {kind!r}: choose one of {', '.join(get_args(KLEstimator))}")


def importance(log_ratio: jax.Array) -> jax.Array:
    """exp of a log-ratio, which it keeps within ±20."""
    return jnp.exp(jnp.clip(log_ratio, -LARGEST, LARGEST))


def kl_divergence(logits: jax.Array, reference_logits: jax.Array) -> jax.Array:
    """KL(p ‖ q) = Σ p (log p - log q), exactly, [...]; of logits [..., V] that fit in memory."""
    log_p = jax.nn.log_softmax(logits, axis=-1)
    log_q = jax.nn.log_softmax(reference_logits, axis=-1)
    return jnp.sum(jnp.exp(log_p) * (log_p - log_q), axis=-1)


def entropy(logits: jax.Array) -> jax.Array:
    """-Σ p log p, exactly, [...]; of logits [..., V] that fit in memory."""
    log_p = jax.nn.log_softmax(logits, axis=-1)
    return -jnp.sum(jnp.exp(log_p) * log_p, axis=-1)
