"""The load-balancing loss of mixtures of experts, added to any objective."""

from llmjax import models
from llmjax.objectives.loss import Metrics, Weighted


def add_balance(
    loss: Weighted, metrics: Metrics, routing: models.Routing | None, config: models.ModelConfig
) -> tuple[Weighted, Metrics]:
    """Adds `experts.balance` times the load-balancing loss, per unit of weight.

    It is the only part of a loss that is not a sum over tokens or rows, so it is computed per
    micro-batch.

    Args:
        loss: the batch's loss.
        metrics: its metrics.
        routing: the routing of the batch's tokens; None for a model without experts, whose loss is
            returned unchanged.
        config: model configuration.

    Returns:
        The loss, and the metrics with "balance", the load-balancing loss (k for evenly spread
        tokens), and "dropped", the share of choices that exceeded the capacity of their expert.
    """
    if routing is None:
        return loss, metrics
    balance, weight = models.balance_loss(routing, config), loss.weight
    choices = routing.tokens * config.experts.per_token
    shares = {"balance": balance, "dropped": routing.dropped / choices.clip(1.0)}
    total = loss.sum + config.experts.balance * balance * weight
    return Weighted(total, weight), metrics | {
        name: share * weight for name, share in shares.items()
    }
