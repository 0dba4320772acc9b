"""Advantages and returns of rollouts.

Rows are those of `objectives.policy`: actions mark sampled tokens, wherever padding and prompts
are, and each segment is a response of its own. Functions accept host arrays and, under `jax.jit`,
sharded arrays.
"""

from typing import Literal, get_args

import jax
import jax.numpy as jnp
import numpy as np

from llmjax import mesh

Group = Literal["grpo", "dr_grpo", "rloo"]

EPSILON = 1e-6  # added to standard deviations


def gae(
    rewards: jax.Array,
    values: jax.Array,
    actions: jax.Array,
    segment_ids: jax.Array,
    *,
    discount: float = 1.0,
    decay: float = 0.95,
) -> tuple[jax.Array, jax.Array]:
    """Generalized advantage estimation (Schulman et al. 2015, equation 16).

    A_t = Σ_k (γλ)^k δ_{t+k} with δ_t = r_t + γ V_{t+1} - V_t, over the actions of a response. The
    value after the last action is 0, whether the response ended there or was cut off. Tokens
    between actions, such as a tool's output, are skipped.

    Args:
        rewards: float [B, S]; only read at actions.
        values: float [B, S], the value of the state in which each action is chosen.
        actions: bool [B, S].
        segment_ids: int32 [B, S].
        discount: γ.
        decay: λ.

    Returns:
        Advantages and returns, A + V, each [B, S]; 0 outside of actions.
    """
    arrays = [
        mesh.place(jnp.asarray(x), ("batch", None)).T
        for x in (rewards, values, actions, segment_ids)
    ]

    def back(later, now):
        later_value, later_advantage, later_segment = later
        reward, value, act, segment = now
        same = segment == later_segment
        next_value = jnp.where(same, later_value, 0.0)
        next_advantage = jnp.where(same, later_advantage, 0.0)
        delta = reward + discount * next_value - value
        advantage = delta + discount * decay * next_advantage
        here = jnp.where(act, value, next_value), jnp.where(act, advantage, next_advantage)
        return (*here, segment), jnp.where(act, advantage, 0.0)

    none = jnp.zeros_like(arrays[1][0])
    start = none, none, jnp.zeros_like(arrays[3][0])
    _, found = jax.lax.scan(back, start, arrays, reverse=True)
    advantages = mesh.place(found.T, ("batch", "sequence"))
    kept = jnp.where(jnp.asarray(actions), jnp.asarray(values), 0.0)
    return advantages, advantages + kept


def discounted_returns(
    rewards: jax.Array, actions: jax.Array, segment_ids: jax.Array, *, discount: float = 1.0
) -> jax.Array:
    """Σ_k γ^k r_{t+k} over the actions of a response, [B, S]; 0 outside of actions.

    Args:
        rewards: float [B, S]; only read at actions.
        actions: bool [B, S].
        segment_ids: int32 [B, S].
        discount: γ.
    """
    nothing = jnp.zeros_like(jnp.asarray(rewards))
    return gae(rewards, nothing, actions, segment_ids, discount=discount, decay=1.0)[0]


def whiten(values: jax.Array, actions: jax.Array, *, center: bool = True) -> jax.Array:
    """Normalizes values to mean 0 and variance 1 over all actions of the (sharded) batch.

    Args:
        values: float [B, S].
        actions: bool [B, S].
        center: whether the mean is subtracted; otherwise values are scaled around it.

    Returns:
        [B, S]; 0 outside of actions. Values that are all equal are only centered.
    """
    values, actions = jnp.asarray(values), jnp.asarray(actions)
    count = jnp.maximum(jnp.sum(actions, dtype=values.dtype), 1.0)
    # Relative to one of them, equal values have a mean of exactly 0. The rounding error of a mean
    # would be divided by a deviation that is not larger.
    one = jnp.max(values, where=actions, initial=jnp.finfo(values.dtype).min)
    apart = jnp.where(actions, values - one, 0.0)
    mean = jnp.sum(apart) / count
    apart = jnp.where(actions, apart - mean, 0.0)
    deviation = jnp.sqrt(jnp.sum(apart**2) / count)
    scaled = apart / (deviation + EPSILON)
    return scaled if center else jnp.where(actions, scaled + (one + mean), 0.0)


def group_advantages(rewards: jax.Array, kind: Group = "grpo") -> jax.Array:
    """The advantage of each response over the others to its prompt, in the shape of `rewards`.

    Args:
        rewards: float [..., N], of N responses to one prompt.
        kind: grpo: (r - mean) / std, with N - 1 in the variance (Shao et al. 2024, section 4.1.2).
            dr_grpo: r - mean (Liu et al. 2025, section 3.2), as dividing by the standard deviation
            favours prompts whose rewards hardly differ. rloo: r minus the mean of the others
            (Ahmadian et al. 2024, section 2.3), N / (N - 1) times that of dr_grpo.

    Raises:
        ValueError: the kind is unknown, or groups have one response.
    """
    rewards = jnp.asarray(rewards)
    count = rewards.shape[-1]
    if count < 2:
        raise ValueError(
            f"group_advantages: {count} response per prompt cannot be compared; sample at least 2"
        )
    # So that equal rewards differ by exactly 0, see `whiten`.
    rewards = rewards - rewards[..., :1]
    apart = rewards - jnp.mean(rewards, axis=-1, keepdims=True)
    if kind == "grpo":
        return apart / (jnp.std(rewards, axis=-1, keepdims=True, ddof=1) + EPSILON)
    if kind == "dr_grpo":
        return apart
    if kind == "rloo":
        return apart * count / (count - 1)
    raise ValueError(f"group_advantages: kind={kind!r}: choose one of {', '.join(get_args(Group))}")


def informative(rewards: np.ndarray) -> np.ndarray:
    """Whether the rewards [..., N] of a group differ, bool [...]; on the host.

    Groups with equal rewards have advantages of 0 and no gradient; dynamic sampling replaces them
    before the update (Yu et al. 2025, section 3.2).
    """
    return np.max(rewards, axis=-1) > np.min(rewards, axis=-1)
