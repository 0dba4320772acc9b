"""Causal language modeling: predict every next token."""

import jax.numpy as jnp

from llmjax import models
from llmjax.kernels.linear_cross_entropy import linear_cross_entropy
from llmjax.objectives.balance import add_balance
from llmjax.objectives.log_probs import require_language_model
from llmjax.objectives.loss import Batch, Loss, Weighted


def clm(config: models.ModelConfig, *, label_smoothing: float = 0.0, z_loss: float = 0.0) -> Loss:
    """-Σ log P(x_i | x_<i) over the targets of a batch (Radford et al. 2018, equation 1).

    Args:
        config: model configuration.
        label_smoothing: share of the target's probability spread evenly over the vocabulary.
        z_loss: weight of the squared log-sum-exp.

    Returns:
        A loss over batches with int32 [B, S] "tokens", "targets" (-1: none), and optionally
        "segment_ids" and "positions". Its weight is the number of targets. Mixtures of experts add
        their load-balancing loss (`add_balance`).

    Raises:
        ValueError: the model has another head, or is bidirectional and would see its targets.
    """
    require_language_model("clm", config)

    def loss(params, batch: Batch, key):
        output = models.forward(
            params,
            batch["tokens"],
            config,
            segment_ids=batch.get("segment_ids"),
            positions=batch.get("positions"),
            key=key,
        )
        total, _ = linear_cross_entropy(
            output.hidden,
            models.lm_weight(params, config),
            batch["targets"],
            label_smoothing=label_smoothing,
            z_loss=z_loss,
            cap=config.head.cap,
        )
        weight = jnp.sum(batch["targets"] >= 0, dtype=jnp.float32)
        return add_balance(Weighted(total, weight), {}, output.routing, config)

    return loss
