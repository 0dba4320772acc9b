"""Samplers: pure functions of logits [B, V].

Top-k and top-p do not sort. Each keeps the logits from some threshold up, which 32 rounds of
bisection over the bits of a float32 find exactly. A round only sums over the vocabulary: that is
cheap where sorting is slow, and works on a vocabulary split over devices.
"""

import dataclasses
import math
from collections.abc import Callable

import jax
import jax.numpy as jnp

from llmjax import mesh

LOGITS = ("batch", "vocab")  # logical axes of logits [B, V]
_BLOCK = 128


@dataclasses.dataclass(frozen=True)
class SamplerConfig:
    """Transformations of the logits before a token is drawn, in this order.

    Attributes:
        repetition_penalty: makes tokens that occur in the prompt or the text less likely; 1 for
            none (CTRL, Keskar et al. 2019, section 4.1).
        temperature: divides the logits; 0 takes the most likely token.
        top_k: keeps the k most likely tokens and ties with the last of them; 0 keeps all.
        top_p: keeps the fewest most likely tokens with at least this total probability (nucleus
            sampling, Holtzman et al. 2019, section 3.1); 1 keeps all.
        min_p: keeps tokens with at least this fraction of the largest probability (Nguyen et al.
            2024, section 3); 0 keeps all. It is applied last.
    """

    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    repetition_penalty: float = 1.0
    min_p: float = 0.0

    def __post_init__(self) -> None:
        if not 0.0 <= self.temperature < float("inf"):
            raise ValueError(
                f"temperature={self.temperature}: 0 for the most likely token, or more"
            )
        if self.top_k < 0:
            raise ValueError(f"top_k={self.top_k}: must be a number of tokens, or 0 for all")
        if not 0.0 < self.top_p <= 1.0:
            raise ValueError(f"top_p={self.top_p}: must be in (0, 1]")
        if not 0.0 <= self.min_p <= 1.0:
            raise ValueError(f"min_p={self.min_p}: must be in [0, 1]")
        if not 0.0 < self.repetition_penalty < float("inf"):
            raise ValueError(
                f"repetition_penalty={self.repetition_penalty}: must be above 0; 1 for no penalty"
            )

    @property
    def greedy(self) -> bool:
        """Whether no randomness is involved."""
        return self.temperature == 0.0 or self.top_k == 1


def sample(
    keys: jax.Array, logits: jax.Array, sampler: SamplerConfig, seen: jax.Array | None = None
) -> jax.Array:
    """Draws one token per row.

    Args:
        keys: a typed PRNG key for each row, [B].
        logits: float32 [B, V].
        sampler: transformations of the logits.
        seen: bool [B, V], tokens that occur in the row; needed for a repetition penalty.

    Returns:
        int32 [B].
    """
    logits = warp(logits, sampler, seen)
    return argmax(logits) if sampler.greedy else _draw(keys, logits)


def warp(logits: jax.Array, sampler: SamplerConfig, seen: jax.Array | None = None) -> jax.Array:
    """The logits [B, V] whose softmax the sampler draws from; -inf for excluded tokens."""
    if sampler.repetition_penalty != 1.0:
        if seen is None:
            raise ValueError("a repetition penalty needs `seen`, the tokens so far")
        logits = penalize(logits, seen, sampler.repetition_penalty)
    if sampler.greedy:
        return logits
    logits = logits / sampler.temperature
    if sampler.top_k:
        logits = top_k(logits, sampler.top_k)
    if sampler.top_p < 1.0:
        logits = top_p(logits, sampler.top_p)
    if sampler.min_p:
        logits = min_p(logits, sampler.min_p)
    return logits


def penalize(logits: jax.Array, seen: jax.Array, penalty: float) -> jax.Array:
    """Divides positive logits of seen tokens by the penalty, and multiplies negative ones."""
    return jnp.where(seen, jnp.where(logits > 0, logits / penalty, logits * penalty), logits)


def top_k(logits: jax.Array, k: int) -> jax.Array:
    """The k largest logits of each row and ties with the last of them; -inf elsewhere."""
    return _keep_from(logits, lambda kept: jnp.sum(kept, axis=-1) >= k)


def top_p(logits: jax.Array, p: float) -> jax.Array:
    """The fewest largest logits with total probability p or more, and ties; -inf elsewhere."""
    probabilities = jax.nn.softmax(logits, axis=-1)
    return _keep_from(
        logits, lambda kept: jnp.sum(jnp.where(kept, probabilities, 0.0), axis=-1) >= p
    )


def min_p(logits: jax.Array, p: float) -> jax.Array:
    """The logits whose probability is at least p times the row's largest; -inf elsewhere."""
    least = jnp.max(logits, axis=-1, keepdims=True) + math.log(p)
    return jnp.where(logits >= least, logits, -jnp.inf)


def argmax(logits: jax.Array) -> jax.Array:
    """Index of the first maximum of each row, int32 [B]; two reductions that XLA:CPU vectorises."""
    vocabulary = jax.lax.broadcasted_iota(jnp.int32, logits.shape, 1)
    largest = jnp.max(logits, axis=-1, keepdims=True)
    return jnp.min(jnp.where(logits == largest, vocabulary, logits.shape[-1] - 1), axis=-1)


def _keep_from(logits: jax.Array, enough: Callable[[jax.Array], jax.Array]) -> jax.Array:
    """Keeps the logits above the largest threshold at which the kept set is `enough`.

    Args:
        logits: float32 [B, V].
        enough: maps the kept set, bool [B, V], to bool [B]; monotone in that set.
    """
    order = _sortable(logits)

    def lower(bit, threshold):
        candidate = threshold | (jnp.uint32(1 << 31) >> bit.astype(jnp.uint32))
        return jnp.where(enough(order >= candidate[:, None]), candidate, threshold)

    start = jnp.zeros_like(jnp.max(order, axis=-1))  # has the right sharding
    threshold = jax.lax.fori_loop(0, 32, lower, start)
    return jnp.where(order >= threshold[:, None], logits, -jnp.inf)


def _sortable(x: jax.Array) -> jax.Array:
    """Maps float32 to unsigned integers of the same order."""
    bits = jax.lax.bitcast_convert_type(x.astype(jnp.float32), jnp.uint32)
    return jnp.where(bits >> 31 == 1, ~bits, bits | jnp.uint32(1 << 31))


def _draw(keys: jax.Array, logits: jax.Array) -> jax.Array:
    """A draw from each row's softmax, int32 [B], with one random number per row.

    Inverts the cumulative distribution in two stages, first over blocks of the vocabulary and then
    within one block, which takes one pass over the vocabulary. Gumbel noise needs a random number
    per token; at a vocabulary of 32,000 that took a fifth of a step on a CPU.
    """
    logits = mesh.place(logits, ("batch", None))
    weights = jnp.exp(logits - jnp.max(logits, axis=-1, keepdims=True))
    weights = jnp.pad(weights, ((0, 0), (0, -weights.shape[1] % _BLOCK)))
    uniform = mesh.place(jax.vmap(jax.random.uniform)(keys), ("batch",))

    def one(uniform, weights):
        blocks = weights.reshape(-1, _BLOCK)
        sums = jnp.sum(blocks, axis=-1)
        block, rest = _invert(sums, uniform * jnp.sum(sums))
        token, _ = _invert(blocks[block], rest)
        return block * _BLOCK + token

    return jax.vmap(one)(uniform, weights)


def _invert(weights: jax.Array, target: jax.Array) -> tuple[jax.Array, jax.Array]:
    """The index where the running sum of weights [N] first exceeds the target, and the remainder.

    Never returns an index of weight 0, even if rounding puts the target at the very end, or, as a
    remainder, below 0. On accelerators, which add in the order of a tree, rounding may also let the
    sum grow at a weight of 0.
    """
    running, possible = jnp.cumsum(weights), weights > 0
    end = jnp.max(running, initial=0.0, where=possible)
    target = jnp.clip(target, 0.0, end * (1.0 - jnp.finfo(weights.dtype).eps))
    place = jnp.argmax((running > target) & possible).astype(jnp.int32)
    return place, target - running[place] + weights[place]
