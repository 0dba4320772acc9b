"""log P(target) of every token of a batch, for a model and a temperature."""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from llmjax import lookup, mesh, models
from llmjax.kernels.linear_cross_entropy import linear_log_probs
from llmjax.objectives.loss import Batch, Params


class LogProbs(NamedTuple):
    """Log-probabilities of a batch.

    Attributes:
        targets: log P(target), float32 [B, S], in nats; 0 where the target is -1.
        entropies: -Σ p·log p over the vocabulary, in the same form; None if not requested.
        output: the model's output.
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
    """log P(target | preceding tokens) for every target, without B·S×V logits in memory.

    Args:
        params: model parameters.
        batch: int32 [B, S] "tokens", "targets" (-1: none), and optionally "segment_ids" and
            "positions".
        config: model configuration.
        key: dropout key; None disables dropout.
        temperature: divides the logits: a number, or one per token, [B, S], if the model has no
            `head.cap`.
        entropy: whether to compute entropies.
        most_targets: maximum number of targets in a row, if known; for rollouts, the limit of new
            tokens. The head is then only computed at that many positions of each row, and not at
            prompts. Targets beyond that number become NaN.
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
        # cap·tanh(x / cap) / T is the cap cap / T applied to x / T.
        hidden, cap = hidden / temperature, cap / temperature
    weight, targets = models.lm_weight(params, config), jnp.asarray(batch["targets"])
    if most_targets is None or most_targets >= targets.shape[1] or mesh.size("sequence") > 1:
        found, entropies = linear_log_probs(hidden, weight, targets, cap=cap, entropy=entropy)
        return LogProbs(found, entropies, output)
    places = jnp.argsort(targets < 0, axis=1, stable=True)[:, :most_targets]
    hidden, chosen = (lookup.gather_positions(x, places) for x in (hidden, targets))
    found, entropies = linear_log_probs(hidden, weight, chosen, cap=cap, entropy=entropy)
    entropies = None if entropies is None else _spread(entropies, targets)
    return LogProbs(_spread(found, targets), entropies, output)


def _spread(values: jax.Array, targets: jax.Array) -> jax.Array:
    """Scatters values of each row's first P targets, [B, P], to their positions [B, S]; else 0."""
    there, most = targets >= 0, values.shape[1]
    order = jnp.cumsum(there, axis=1) - 1
    found = lookup.gather_positions(values, jnp.clip(order, 0, most - 1))
    return jnp.where(there, jnp.where(order < most, found, jnp.nan), 0.0)


def require_language_model(name: str, config: models.ModelConfig) -> None:
    """Raises ValueError unless the model is causal with a language-model head."""
    if config.head.kind != "lm" or not config.attention.causal:
        raise ValueError(
            f"{name} needs a causal model with head.kind=lm, not {config.head.kind} and "
            f"attention.causal={config.attention.causal}"
        )
