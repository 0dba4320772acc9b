"""Cross entropy with its logits in memory: the oracle of every implementation."""

import jax
import jax.numpy as jnp


def token_losses(
    hidden, weight, bias, targets, label_smoothing: float, z_loss: float, cap: float = 0.0
) -> jax.Array:
    """The loss of every token, [B, S]; shapes and terms as in `api.linear_cross_entropy`."""
    logits = jnp.einsum("bsd,vd->bsv", hidden, weight)
    logits = logits.astype(jnp.promote_types(logits.dtype, jnp.float32))
    logits = logits if bias is None else logits + bias
    logits = cap * jnp.tanh(logits / cap) if cap else logits
    log_sum = jax.nn.logsumexp(logits, axis=-1)
    picked = jnp.take_along_axis(logits, jnp.maximum(targets, 0)[..., None], axis=-1)[..., 0]
    expected = (1 - label_smoothing) * picked + label_smoothing * jnp.mean(logits, axis=-1)
    losses = log_sum - expected + z_loss * log_sum**2
    return jnp.where(targets >= 0, losses, 0.0)
