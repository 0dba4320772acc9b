"""KL divergence between policies, estimated from samples or exact, and entropy."""

from typing import Literal, get_args

import jax
import jax.numpy as jnp

KLEstimator = Literal["k1", "k2", "k3"]

# Bound on exponents: importance ratios beyond e^20 only show that something is wrong, and their
# square would overflow float32.
LARGEST = 20.0


def kl_estimate(log_ratio: jax.Array, kind: KLEstimator) -> jax.Array:
    """An estimate of KL(p ‖ q) from each sample of p, in nats (Schulman 2020, Approximating KL).

    With r = p / q: k1 is log r, unbiased but often negative; k2 is (log r)² / 2, biased with low
    variance; k3 is 1/r - 1 + log r, unbiased and never negative. As a loss over samples of p, the
    expected gradient is 0 for k1, that of KL(p ‖ q) for k2 and that of KL(q ‖ p) for k3: so k1 is
    only for rewards.

    Args:
        log_ratio: log r = log p(x) - log q(x), any shape.
        kind: the estimator.

    Raises:
        ValueError: the kind is unknown.
    """
    if kind == "k1":
        return log_ratio
    if kind == "k2":
        return 0.5 * log_ratio**2
    if kind == "k3":
        # exp(x) - 1 would lose the small ratios of a policy that has hardly moved.
        return jnp.expm1(_bounded(-log_ratio)) + log_ratio
    raise ValueError(f"KL estimator {kind!r}: choose one of {', '.join(get_args(KLEstimator))}")


def importance(log_ratio: jax.Array) -> jax.Array:
    """exp of a log-ratio, which is clipped to ±20."""
    return jnp.exp(_bounded(log_ratio))


def _bounded(log_ratio: jax.Array) -> jax.Array:
    return jnp.clip(log_ratio, -LARGEST, LARGEST)


def kl_divergence(logits: jax.Array, reference_logits: jax.Array) -> jax.Array:
    """The exact KL(p ‖ q) = Σ p (log p - log q), [...], from logits [..., V] in memory."""
    log_p = jax.nn.log_softmax(logits, axis=-1)
    log_q = jax.nn.log_softmax(reference_logits, axis=-1)
    return _expected(log_p - log_q, log_p)


def entropy(logits: jax.Array) -> jax.Array:
    """The exact entropy -Σ p log p, [...], from logits [..., V] in memory."""
    log_p = jax.nn.log_softmax(logits, axis=-1)
    return -_expected(log_p, log_p)


def _expected(values: jax.Array, log_p: jax.Array) -> jax.Array:
    """Σ p · values, without the terms of probability 0, such as those of excluded tokens."""
    p = jnp.exp(log_p)
    return jnp.sum(jnp.where(p > 0, p * values, 0.0), axis=-1)
