"""The public operation from hidden states to the language-modelling loss."""

from typing import Literal

import jax
import jax.numpy as jnp

from llmjax.kernels.linear_cross_entropy import reference, xla

IGNORE = -1  # the target of a position that predicts nothing

Implementation = Literal["xla", "reference"]


def linear_cross_entropy(
    hidden: jax.Array,
    weight: jax.Array,
    targets: jax.Array,
    *,
    bias: jax.Array | None = None,
    label_smoothing: float = 0.0,
    z_loss: float = 0.0,
    cap: float = 0.0,
    implementation: Implementation | None = None,
) -> tuple[jax.Array, jax.Array]:
    """Cross entropy of softmax(hidden · weightᵀ) against targets, without B·S×V logits in memory.

    The loss of a token with log-sum-exp Z, logit of the target y and label smoothing ε is
    Z - (1-ε) y - ε mean(logits) + z_loss · Z² (Szegedy et al. 2016, section 7; Chowdhery et al.
    2022, section 5), in nats.

    Args:
        hidden: [B, S, D], in the compute precision.
        weight: [V, D], one row for each token: an embedding table or a head of its shape.
        targets: int32 [B, S]; -1 where a position predicts nothing and costs nothing.
        bias: [V], added to the products, before the cap.
        label_smoothing: ε.
        z_loss: weight of Z², which keeps log-sum-exps near 0 (1e-4 is usual).
        cap: logits are bent into ±cap by cap·tanh(logit / cap) first; 0 leaves them.
        implementation: "xla" (chunks of tokens), the default, or "reference".

    Returns:
        The float32 sum of the losses, which has gradients, and the loss of every token, float32
        [B, S], which has none with "xla": it is there to be looked at.

    Raises:
        ValueError: shapes that do not fit together or numbers out of range.
    """
    if hidden.ndim != 3 or weight.ndim != 2 or hidden.shape[2] != weight.shape[1]:
        raise ValueError(
            f"linear_cross_entropy needs hidden [B,S,D] and weight [V,D], not {hidden.shape} and "
            f"{weight.shape}"
        )
    if targets.shape != hidden.shape[:2]:
        raise ValueError(
            f"linear_cross_entropy: targets {targets.shape} are not {hidden.shape[:2]}"
        )
    if not 0.0 <= label_smoothing < 1.0 or z_loss < 0.0 or cap < 0.0:
        raise ValueError(
            f"linear_cross_entropy: label_smoothing={label_smoothing} must be in [0, 1), "
            f"z_loss={z_loss} and cap={cap} at least 0"
        )
    if implementation == "reference":
        losses = reference.token_losses(hidden, weight, bias, targets, label_smoothing, z_loss, cap)
        return jnp.sum(losses), losses
    # Host arrays have no lookup by index that takes a sharding.
    hidden, weight = jnp.asarray(hidden), jnp.asarray(weight)
    return xla.token_losses(hidden, weight, bias, targets, label_smoothing, z_loss, cap)
