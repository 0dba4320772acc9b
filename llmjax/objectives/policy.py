"""Policy losses for rollouts: PPO, GRPO and their variants.

Means over a batch's tokens or responses are expressed as token weights, which `prepare` computes
over the whole batch before it is split. The loss is then a sum over tokens whose weight is the
number of responses, so it does not depend on how the batch is split.
"""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp

from llmjax import mesh, models
from llmjax.objectives.balance import add_balance
from llmjax.objectives.critic import Critic, policy_params
from llmjax.objectives.divergence import importance, kl_estimate
from llmjax.objectives.log_probs import log_probs, require_language_model
from llmjax.objectives.loss import Batch, Loss, Prepare, PreparedLoss, Weighted
from llmjax.objectives.segments import at_tokens, segment_sums
from llmjax.objectives.surrogate import PolicyConfig, clipped_surrogate, clipped_value_loss

EXTREME = 2.0  # ratios beyond this factor, up or down, are reported


def policy(
    config: models.ModelConfig,
    settings: PolicyConfig | None = None,
    *,
    critic: Critic | None = None,
    most_targets: int | None = None,
) -> PreparedLoss:
    """The clipped surrogate loss of rollouts, with additional terms; see `PolicyConfig`.

    Args:
        config: model configuration of the policy.
        settings: by default PPO's.
        critic: estimates values; None without a critic, as in GRPO.
        most_targets: maximum number of targets in a row, including pretraining text, if known; see
            `log_probs`.

    Returns:
        A loss over the policy's parameters, or those that `critic.spec` declares, and batches with
        int32 [B, S] "tokens", "targets" (the tokens that were sampled, else -1), "segment_ids" (a
        segment is a prompt with one response) and optionally "positions", and float32 [B, S], each
        at the place of its target:

        - "advantages".
        - "old_log_probs": of the policy that sampled, at its temperature. Without them, the current
          policy counts as the old one, with ratios of 1 that have a gradient.
        - "reference_log_probs": for the KL divergence, in the loss or only as a metric.
        - "returns", and "old_values" with a value_clip: for a critic.
        - "pretrain_weights": above 0 at targets of pretraining text, which are not actions. The
          weighted mean of -log P there, at temperature 1, times pretrain_coefficient is added.
        - "weights": weights of tokens, instead of `settings.aggregation`; their sum is divided by
          the number of responses.

        Its weight is the number of responses, segments with an action. Responses without a learning
        signal, such as a group with equal rewards (DAPO, section 3.2), have targets of -1. Its
        metrics are the loss's terms before their coefficients, "policy_loss" and so on, and means
        over the batch's actions: "entropy", "approx_kl" (from the old policy), "kl" (from the
        reference), "ratio" (which may be a sequence's), the shares "ratio_outside" the bounds,
        "ratio_extreme" (beyond a factor of 2), "clipped_low", "clipped_high", "dual_clipped" and
        "value_clipped", and the "value", "return", "return_square", "value_error" and its square,
        for `explained_variance`. Minimum and maximum ratios are not reported, as they do not add up
        over parts of a batch.

    Raises:
        ValueError: the model has another head or is bidirectional; pretraining text at a
            temperature other than 1 with `head.cap`; the batch lacks an array.
    """
    settings = PolicyConfig() if settings is None else settings
    require_language_model("policy", config)
    if settings.pretrain_coefficient and settings.temperature != 1 and config.head.cap:
        raise ValueError(
            f"policy.pretrain_coefficient={settings.pretrain_coefficient} at "
            f"temperature={settings.temperature}: with capped logits (head.cap) a batch has a "
            "single temperature; set it to 1, or leave pretraining text out"
        )
    compute = _compute(config, settings, critic, most_targets)
    return PreparedLoss(_prepare(settings), compute, "token_scale")


def explained_variance(metrics: Mapping[str, Any]) -> Any:
    """1 - Var(R - V) / Var(R), from the metrics of a step of `policy` with a critic.

    It is 1 if values predict the returns, 0 if they are no better than the mean return, and
    negative if they are worse. It is undefined if all returns are equal.
    """
    error = metrics["value_error_square"] - metrics["value_error"] ** 2
    return 1 - error / (metrics["return_square"] - metrics["return"] ** 2)


def _compute(
    config: models.ModelConfig,
    settings: PolicyConfig,
    critic: Critic | None,
    most_targets: int | None,
) -> Loss:
    """The loss of prepared batches."""

    def loss(params, batch: Batch, key):
        _require(batch, settings, critic)
        keys = (None, None) if key is None else jax.random.split(key)
        acts = _actions(batch)
        found = log_probs(
            policy_params(params, critic),
            batch,
            config,
            keys[0],
            temperature=_temperature(batch, settings),
            entropy=True,
            most_targets=most_targets,
        )
        values = None
        if critic is not None:
            values = critic.values(params, batch, found.output.hidden, keys[1])
        losses, metrics = _token_losses(found, values, acts, batch, settings)
        weights = jnp.asarray(batch["weights"])

        def total(x):
            return jnp.sum(jnp.where(acts, x * weights, 0.0))

        parts = {name: total(x) for name, x in losses.items()}
        if settings.pretrain_coefficient:
            scaled = batch["pretrain_weights"] * batch["pretrain_scale"][:, None]
            parts["pretrain_loss"] = -jnp.sum(found.targets * scaled)
        weight = _responses(_lengths(acts, batch))
        summed = sum(_coefficients(settings)[name] * part for name, part in parts.items())
        metrics = {
            name: jnp.sum(jnp.where(acts, x * batch["token_scale"][:, None], 0.0))
            for name, x in metrics.items()
        }
        return add_balance(Weighted(summed, weight), parts | metrics, found.output.routing, config)

    return loss


def _coefficients(settings: PolicyConfig) -> dict[str, float]:
    return {
        "policy_loss": 1.0,
        "kl_loss": settings.kl_coefficient,
        "entropy_loss": settings.entropy_coefficient,
        "value_loss": settings.value_coefficient,
        "pretrain_loss": settings.pretrain_coefficient,
    }


def _require(batch: Batch, settings: PolicyConfig, critic: Critic | None) -> None:
    """Raises ValueError if the batch lacks an array that the loss reads."""
    needed = {
        "advantages": "every policy loss",
        "reference_log_probs": "kl_coefficient above 0" if settings.kl_coefficient else "",
        "returns": "a critic" if critic else "",
        "old_values": "a critic with value_clip" if critic and settings.value_clip else "",
        "pretrain_weights": "pretrain_coefficient above 0" if settings.pretrain_coefficient else "",
    }
    for name, why in needed.items():
        if why and name not in batch:
            raise ValueError(f'policy: the batch has no "{name}" [B, S], which {why} needs')


def _actions(batch: Batch) -> jax.Array:
    """The targets that the policy sampled, bool [B, S]."""
    there = jnp.asarray(batch["targets"]) >= 0
    if "pretrain_weights" in batch:
        there &= jnp.asarray(batch["pretrain_weights"]) == 0
    return there


def _lengths(acts: jax.Array, batch: Batch) -> jax.Array:
    """The number of actions of each response, [B, S]; that of segment k + 1 at index k."""
    return segment_sums(acts.astype(float), batch["segment_ids"], acts.shape[1])


def _responses(lengths: jax.Array) -> jax.Array:
    return jnp.sum(lengths > 0, dtype=jnp.float32)


def _temperature(batch: Batch, settings: PolicyConfig) -> float | jax.Array:
    if settings.temperature == 1 or not settings.pretrain_coefficient:
        return settings.temperature
    return jnp.where(jnp.asarray(batch["pretrain_weights"]) > 0, 1.0, settings.temperature)


def _prepare(settings: PolicyConfig) -> Prepare:
    """Adds token weights, and [B] scales that turn sums per response into means."""

    def prepare(batch: Batch, key: jax.Array | None) -> Batch:
        del key
        acts = _actions(batch)
        lengths = _lengths(acts, batch)
        responses, tokens = _responses(lengths), jnp.sum(acts, dtype=float)
        spread = mesh.sharded(jnp.broadcast_to, ("batch",))

        def scale(total):
            safe = jnp.where(total > 0, total, 1.0)
            return spread(responses.astype(safe.dtype) / safe, acts.shape[:1])

        added = {"token_scale": scale(tokens)}
        if "pretrain_weights" in batch:
            added["pretrain_scale"] = scale(jnp.sum(jnp.asarray(batch["pretrain_weights"])))
        if "weights" not in batch:
            shares = {
                "token": lambda: added["token_scale"][:, None],
                "sequence": lambda: 1 / jnp.maximum(at_tokens(lengths, batch["segment_ids"]), 1.0),
                "constant": lambda: 1 / settings.max_length,
            }
            added["weights"] = jnp.where(acts, shares[settings.aggregation](), 0.0)
        return dict(batch) | added

    return prepare


def _token_losses(found, values, acts, batch: Batch, settings: PolicyConfig):
    """Terms of the loss and metrics by name, each [B, S]."""
    old = batch.get("old_log_probs")
    old = jax.lax.stop_gradient(found.targets) if old is None else jnp.asarray(old)
    log_ratios = of_tokens = jnp.where(acts, found.targets - old, 0.0)
    if settings.ratio == "sequence":
        ids, lengths = batch["segment_ids"], _lengths(acts, batch)
        sums = segment_sums(log_ratios, ids, acts.shape[1])
        log_ratios = at_tokens(sums / jnp.maximum(lengths, 1.0), ids)
    advantages = jnp.where(acts, jnp.asarray(batch["advantages"]), 0.0)
    surrogate = clipped_surrogate(log_ratios, advantages, settings)
    losses = {"policy_loss": surrogate.losses}
    metrics = _watch(log_ratios, surrogate, settings) | {
        "approx_kl": kl_estimate(-of_tokens, "k3"),  # KL(π_old ‖ π)
        "entropy": found.entropies,
    }
    if settings.entropy_coefficient:
        losses["entropy_loss"] = -found.entropies
    if "reference_log_probs" in batch:
        apart = jnp.where(acts, found.targets - jnp.asarray(batch["reference_log_probs"]), 0.0)
        metrics["kl"] = kl_estimate(apart, settings.kl)
        if settings.kl_coefficient:
            losses["kl_loss"] = metrics["kl"]
    if values is not None:
        returns = jnp.where(acts, jnp.asarray(batch["returns"]), 0.0)
        old_values = batch.get("old_values")
        losses["value_loss"], clipped = clipped_value_loss(
            values, old_values, returns, settings.value_clip
        )
        errors = returns - values
        metrics |= {
            "value_clipped": clipped,
            "value": values,
            "return": returns,
            "return_square": returns**2,
            "value_error": errors,
            "value_error_square": errors**2,
        }
    return losses, jax.lax.stop_gradient(metrics)


def _watch(log_ratios, surrogate, settings: PolicyConfig) -> dict[str, jax.Array]:
    """Metrics of how far the policy has moved since the rollouts, per action."""
    ratios = importance(log_ratios)
    return {
        "ratio": ratios,
        "ratio_outside": (ratios < 1 - settings.clip_low) | (ratios > 1 + settings.clip_high),
        "ratio_extreme": (ratios < 1 / EXTREME) | (ratios > EXTREME),
        "clipped_low": surrogate.low,
        "clipped_high": surrogate.high,
        "dual_clipped": surrogate.dual,
    }
