"""Reference implementation of cross entropy, with the logits in memory."""

import jax
import jax.numpy as jnp


def token_losses(
    hidden, weight, bias, targets, label_smoothing: float, z_loss: float, cap: float = 0.0
) -> jax.Array:
    """The loss of every token, [B, S]; shapes and terms as in `api.linear_cross_entropy`."""
    logits = _logits(hidden, weight, bias, cap)
    log_sum = jax.nn.logsumexp(logits, axis=-1)
    mean = jnp.mean(logits, axis=-1)
    expected = (1 - label_smoothing) * _at(logits, targets) + label_smoothing * mean
    losses = log_sum - expected + z_loss * log_sum**2
    return jnp.where(targets >= 0, losses, 0.0)


def log_probs(hidden, weight, bias, targets, cap: float = 0.0) -> tuple[jax.Array, jax.Array]:
    """log P(target) and -Σ p·log p, each [B, S]; as in `api.linear_log_probs`."""
    found = jax.nn.log_softmax(_logits(hidden, weight, bias, cap), axis=-1)
    entropies = -jnp.sum(jnp.exp(found) * found, axis=-1)
    there = targets >= 0
    return jnp.where(there, _at(found, targets), 0.0), jnp.where(there, entropies, 0.0)


def _logits(hidden, weight, bias, cap):
    wide = jnp.promote_types(jnp.result_type(hidden, weight), jnp.float32)
    logits = jnp.einsum("bsd,vd->bsv", hidden, weight, preferred_element_type=wide)
    logits = logits if bias is None else logits + bias
    return cap * jnp.tanh(logits / cap) if cap else logits


def _at(logits, targets):
    return jnp.take_along_axis(logits, jnp.maximum(targets, 0)[..., None], axis=-1)[..., 0]
