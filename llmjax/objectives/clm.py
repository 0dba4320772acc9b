"""Causal language modelling: predict every next token."""

import jax.numpy as jnp

from llmjax import models
from llmjax.kernels.linear_cross_entropy import linear_cross_entropy
from llmjax.objectives.loss import Batch, Loss, Weighted
from llmjax.weights import materialize


def clm(config: models.ModelConfig, *, label_smoothing: float = 0.0, z_loss: float = 0.0) -> Loss:
    """-Σ log P(x_i | x_<i) over the targets of a batch (Radford et al. 2018, equation 1).

    Args:
        config: the model's.
        label_smoothing: share of the target spread evenly over the vocabulary.
        z_loss: weight of the squared log-sum-exp.

    Returns:
        A loss over batches with int32 [B, S] "tokens", "targets" (-1: none), and optionally
        "segment_ids" and "positions". Its weight is the number of targets. To a mixture of
        experts' loss `experts.balance` times the load-balancing loss is added for every target:
        the only part that is no sum over tokens, so each micro-batch balances its own. Its metric
        "balance" is 1 or more, k where tokens are spread evenly over the experts; "dropped" the
        share of their choices that was one too many for an expert.

    Raises:
        ValueError: a model with another head, or a bidirectional one, which sees what it predicts.
    """
    if config.head.kind != "lm" or not config.attention.causal:
        raise ValueError(
            f"clm needs a causal model with head.kind=lm, not {config.head.kind} and "
            f"attention.causal={config.attention.causal}"
        )

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
            materialize(models.lm_weight(params, config)),
            batch["targets"],
            label_smoothing=label_smoothing,
            z_loss=z_loss,
            cap=config.head.cap,
        )
        weight = jnp.sum(batch["targets"] >= 0, dtype=jnp.float32)
        if output.routing is None:
            return Weighted(total, weight), {}
        balance = models.balance_loss(output.routing, config)
        total += config.experts.balance * balance * weight
        copies = jnp.maximum(output.routing.tokens * config.experts.per_token, 1.0)
        shares = {"balance": balance, "dropped": output.routing.dropped / copies}
        return Weighted(total, weight), {name: share * weight for name, share in shares.items()}

    return loss
