"""Reward models: scores of responses, learned from comparisons."""

import dataclasses
from typing import Literal

import jax
import jax.numpy as jnp

from llmjax import models
from llmjax.checks import require_at_least, require_choices
from llmjax.objectives.balance import add_balance
from llmjax.objectives.comparison import Pairs, differences, require_segments
from llmjax.objectives.loss import Batch, Loss, Weighted


@dataclasses.dataclass(frozen=True)
class RewardConfig:
    """Options of the reward model's loss.

    Attributes:
        ranking: the loss of a row of K responses. pairs: the mean over its K(K-1)/2 pairs
            (InstructGPT). plackett_luce: the best is chosen among all, the next among the rest,
            and so on (Plackett 1975). For K = 2 both are the Bradley-Terry model (1952).
        centring: weight of (r_i + r_j)² in the mean over pairs, which keeps rewards around 0;
            0.01 is usual (Eisenstein et al. 2023, section 2).
    """

    ranking: Literal["pairs", "plackett_luce"] = "pairs"
    centring: float = 0.0

    def __post_init__(self) -> None:
        require_choices(self, "reward")
        require_at_least(0, self, "reward", ("centring",))


def reward(
    config: models.ModelConfig, settings: RewardConfig | None = None, *, responses: int = 2
) -> Loss:
    """-log σ(r_i - r_j - margin), where i is better than j (Ouyang et al. 2022, equation 1).

    The plain difference r_i - r_j would be unbounded as a loss.

    Args:
        config: configuration of a model with a head of kind reward. `head.pool` selects the state
            of a segment that the head reads, by default the last.
        settings: by default, the mean over pairs.
        responses: K, the maximum per row.

    Returns:
        A loss over batches with int32 [B, S] "tokens" and "segment_ids" (0: padding; 1 to K: the
        responses with their prompts, best first; a row may have fewer), and optionally "positions",
        and float32 [B] "margin" (Touvron et al. 2023, equation 2), of pairs only. Its weight is the
        number of rows with a pair. Its metrics are means over the pairs of a row: "accuracy",
        "margin" (of rewards), and the rewards "chosen" and "rejected".

    Raises:
        ValueError: the model has another head; the batch has no segments, or has margins with
            plackett_luce.
    """
    settings = RewardConfig() if settings is None else settings
    if config.head.kind != "reward":
        raise ValueError(f"reward needs a model with head.kind=reward, not {config.head.kind}")

    def loss(params, batch: Batch, key):
        keys = (None, None) if key is None else jax.random.split(key)
        segment_ids = require_segments("reward", batch, responses)
        output = models.forward(
            params,
            batch["tokens"],
            config,
            segment_ids=segment_ids,
            positions=batch.get("positions"),
            key=keys[0],
        )
        rewards, present = models.segment_rewards(
            params, output.hidden, config, segment_ids, responses, key=keys[1]
        )
        pairs = Pairs.of(present)
        total = ranking_loss(rewards, present, settings, batch.get("margin"))
        weight = jnp.sum(pairs.rows, dtype=jnp.float32)
        metrics = pairs.metrics(rewards)
        return add_balance(Weighted(total, weight), metrics, output.routing, config)

    return loss


def ranking_loss(
    rewards: jax.Array,
    present: jax.Array,
    settings: RewardConfig,
    margin: jax.Array | None = None,
) -> jax.Array:
    """The sum over rows of their ranking losses.

    Args:
        rewards: [B, K], best first.
        present: bool [B, K], which of them exist.
        settings: options of the loss.
        margin: [B], by which the better of each pair should lead; None means 0.

    Raises:
        ValueError: margins are given with plackett_luce, which does not support them.
    """
    pairs = Pairs.of(present)
    if settings.ranking == "pairs":
        leads = differences(rewards)
        if margin is not None:
            leads -= jnp.asarray(margin)[:, None, None]
        total = pairs.mean(jax.nn.softplus(-leads))
    else:
        if margin is not None:
            raise ValueError(
                'reward: ranking=plackett_luce does not support a "margin", only ranking=pairs does'
            )
        total = jnp.sum(jnp.where(pairs.rows, _plackett_luce(rewards, present), 0.0))
    if settings.centring:
        sums = rewards[:, :, None] + rewards[:, None]
        total += settings.centring * pairs.mean(sums**2)
    return total


def _plackett_luce(rewards: jax.Array, present: jax.Array) -> jax.Array:
    """-Σ_i log(exp r_i / Σ_{j≥i} exp r_j), [B]."""
    count = rewards.shape[1]
    left = present[:, None] & jnp.triu(jnp.ones((count, count), bool))
    # A finite floor, so that empty rows have no NaN in their gradient.
    among = jnp.where(left, rewards[:, None], jnp.finfo(rewards.dtype).min / 2)
    costs = jax.nn.logsumexp(among, axis=2) - rewards
    return jnp.sum(jnp.where(present, costs, 0.0), axis=1)


def ensemble_rewards(
    rewards: jax.Array,
    how: Literal["mean", "min", "uncertainty"] = "mean",
    coefficient: float = 0.1,
) -> jax.Array:
    """Combines the rewards of several models (Coste et al. 2023, section 3.2).

    Args:
        rewards: [N, ...], of N models trained from different seeds.
        how: mean; min (the worst case: only what all models like is rewarded); uncertainty: the
            mean minus `coefficient` times the variance over models.
        coefficient: weight of the variance.

    Raises:
        ValueError: `how` is unknown.
    """
    if how == "mean":
        return jnp.mean(rewards, axis=0)
    if how == "min":
        return jnp.min(rewards, axis=0)
    if how == "uncertainty":
        return jnp.mean(rewards, axis=0) - coefficient * jnp.var(rewards, axis=0)
    raise ValueError(f"ensemble_rewards: how={how!r}: choose one of mean, min, uncertainty")
