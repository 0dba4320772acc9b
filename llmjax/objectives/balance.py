"""What a mixture of experts pays, under any objective, for sending tokens to few of them."""

from llmjax import models
from llmjax.objectives.loss import Metrics, Weighted


def add_balance(
    loss: Weighted, metrics: Metrics, routing: models.Routing | None, config: models.ModelConfig
) -> tuple[Weighted, Metrics]:
    """The loss with `experts.balance` times the load-balancing loss, once for each unit of weight.

    That is the only part of a loss that is no sum over tokens or rows, so each micro-batch balances
    its own.

    Args:
        loss: of the batch.
        metrics: its metrics.
        routing: where the model sent the batch's tokens; None of one without experts, whose loss
            stays as it is.
        config: model configuration.

    Returns:
        The loss, and the metrics with "balance", the load-balancing loss (k where tokens are spread
        evenly over the experts), and "dropped", the share of choices that exceeded the capacity of
        their expert.
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
