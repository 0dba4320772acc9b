"""Replaced-token pretraining: sampling replacements of masked tokens from a generator."""

import math

import jax
import jax.numpy as jnp

from llmjax import mesh


def sample_replacements(
    key: jax.Array,
    logits: jax.Array,
    tokens: jax.Array,
    positions: jax.Array,
    targets: jax.Array,
) -> tuple[jax.Array, jax.Array]:
    """Replaces the masked tokens by samples from a generator (Clark et al. 2020, section 3).

    Samples follow the softmax of the logits (`_draw`). No gradient flows from the result to the
    logits, because of the sampling (section 3).

    Args:
        key: key of the noise; or one per row, [B], so that rows are independent.
        logits: [B, P, V], the generator's logits at the positions.
        tokens: int32 [B, S], the rows before or after masking: they only differ at positions.
        positions: int32 [B, P], as in `Masked`.
        targets: int32 [B, P], the original tokens there; -1 after the last (`targets_at`).

    Returns:
        The corrupted rows [B, S], and which tokens are not the original ones, bool [B, S]: a sample
        that equals the original counts as original.

    Raises:
        ValueError: shapes do not match.
    """
    if positions.shape != targets.shape or positions.shape != logits.shape[:2]:
        raise ValueError(
            f"sample_replacements: logits {logits.shape} need positions and targets of "
            f"{logits.shape[:2]}, not {positions.shape} and {targets.shape}"
        )
    tokens, positions, targets = (
        mesh.place(jnp.asarray(x), ("batch", None)) for x in (tokens, positions, targets)
    )
    # The vocabulary is gathered, as its blocks may not divide evenly over devices that split it.
    wide = jax.lax.stop_gradient(jnp.asarray(logits, jnp.float32))
    wide = mesh.place(wide, ("batch", None, None))
    keys = key if key.ndim else jax.random.split(key, wide.shape[0])
    sampled = jax.vmap(_draw)(mesh.place(keys, ("batch",)), wide).astype(tokens.dtype)

    # Writes beyond the row's end are dropped.
    places = jnp.where(targets >= 0, positions, tokens.shape[1])
    corrupted = _write(tokens, places, sampled)
    replaced = _write(jnp.zeros_like(tokens, dtype=bool), places, sampled != targets)
    return corrupted, replaced


def _draw(key: jax.Array, logits: jax.Array) -> jax.Array:
    """Samples tokens int [P] from softmax(logits [P, V]).

    argmax(logits + Gumbel noise) follows the softmax. It is applied twice: to blocks of the
    vocabulary, by their log-sum-exps, and within the sampled block, as P(token) =
    P(block) · P(token | block). This needs about √V instead of V random numbers per token, which
    would take a seventh of a small model's training step.
    """
    count = logits.shape[0]
    blocks, width = _blocks(logits.shape[1])
    parts = logits.reshape(count, blocks, width)
    block_key, token_key = jax.random.split(key)
    sums = jax.nn.logsumexp(parts, axis=2)
    block = jnp.argmax(sums + jax.random.gumbel(block_key, sums.shape), axis=1)
    inner = jnp.take_along_axis(parts, block[:, None, None], axis=1)[:, 0]
    token = jnp.argmax(inner + jax.random.gumbel(token_key, inner.shape), axis=1)
    return block * width + token


def _blocks(vocab_size: int) -> tuple[int, int]:
    """The two factors of V that are closest to each other, the larger first."""
    width = next(n for n in range(math.isqrt(vocab_size), 0, -1) if vocab_size % n == 0)
    return vocab_size // width, width


def _write(rows: jax.Array, places: jax.Array, values: jax.Array) -> jax.Array:
    """Writes values [B, P] to rows [B, S] at their places."""

    def one(row, places, values):
        return row.at[places].set(values, mode="drop")

    return jax.vmap(one)(rows, places, values)
