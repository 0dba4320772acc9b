"""log P(target) of every token of a batch, under a model and at a temperature."""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from llmjax import lookup, mesh, models
from llmjax.kernels.linear_cross_entropy import linear_log_probs
from llmjax.objectives.loss import Batch, Params
from llmjax.weights import materialize


class LogProbs(NamedTuple):
    """What a language model says of a batch.

    Attributes:
        targets: log P(target), float32 [B, S], in nats; 0 where the target is -1.
        entropies: -Σ p·log p over the vocabulary, likewise; None where not asked for.
        output: of the model.
    """

    targets: jax.Array
    entropies: jax.Array | None
    output: models.Output


def log_probs(
    params: Params,
    batch: Batch,
    config: models.ModelConfig,
    key: jax.Array | None = None,
    *,
    temperature: float | jax.Array = 1.0,
    entropy: bool = False,
    most_targets: int | None = None,
) -> LogProbs:
    """log P(target | the tokens up to it) for every target, without B·S×V logits in memory.

    Args:
        params: model parameters.
        batch: int32 [B, S] "tokens", "targets" (-1: none), and optionally "segment_ids" and
            "positions".
        config: model configuration.
        key: dropout key; None disables dropout.
        temperature: what logits are divided by: one number, or one for each token, [B, S], if the
            model has no `head.cap`.
        entropy: whether entropies are wanted.
        most_targets: the most targets that a row has, if that is known: of rollouts, their limit of
            new tokens. The head is then computed at that many positions of each row only, so not
            at prompts. Targets beyond that number come out as NaN.
    """
    output = models.forward(
        params,
        batch["tokens"],
        config,
        segment_ids=batch.get("segment_ids"),
        positions=batch.get("positions"),
        key=key,
    )
    hidden, cap = output.hidden, config.head.cap
    if isinstance(temperature, jax.Array):
        hidden = hidden / temperature[..., None].astype(hidden.dtype)
    elif temperature != 1.0:
        # cap·tanh(x / cap) / T is the same of x / T and cap / T.
        hidden, cap = hidden / temperature, cap / temperature
    weight, targets = materialize(models.lm_weight(params, config)), jnp.asarray(batch["targets"])
    if most_targets is None or most_targets >= targets.shape[1] or mesh.size("sequence") > 1:
        found, entropies = linear_log_probs(hidden, weight, targets, cap=cap, entropy=entropy)
        return LogProbs(found, entropies, output)
    places = jnp.argsort(targets < 0, axis=1, stable=True)[:, :most_targets]
    hidden, chosen = (lookup.gather_positions(x, places) for x in (hidden, targets))
    found, entropies = linear_log_probs(hidden, weight, chosen, cap=cap, entropy=entropy)
    entropies = None if entropies is None else _spread(entropies, targets)
    return LogProbs(_spread(found, targets), entropies, output)


def _spread(values: jax.Array, targets: jax.Array) -> jax.Array:
    """Values of the first P targets of each row, [B, P], at their places, [B, S]; elsewhere 0."""
    there, most = targets >= 0, values.shape[1]
    order = jnp.cumsum(there, axis=1) - 1
    found = lookup.gather_positions(values, jnp.clip(order, 0, most - 1))
    return jnp.where(there, jnp.where(order < most, found, jnp.nan), 0.0)


def require_language_model(name: str, config: models.ModelConfig) -> None:
    """Raises ValueError unless the model predicts next tokens and does not see them."""
    if config.head.kind != "lm" or not config.attention.causal:
        raise ValueError(
            f"{name} needs a causal model with head.kind=lm, not {config.head.kind} and "
            f"attention.causal={config.attention.causal}"
        )
