"""Replaced-token pretraining: what a generator puts in the place of masked tokens."""

import jax
import jax.numpy as jnp

from llmjax import mesh


def gather_positions(hidden: jax.Array, positions: jax.Array) -> jax.Array:
    """The hidden states at some positions of each row, [B, P, D].

    Args:
        hidden: [B, S, D].
        positions: int32 [B, P] in [0, S), as `mask_tokens` gives them.
    """
    # Rows are a batch axis of this look-up, so each device finds those of its own.
    found = jnp.take_along_axis(jnp.asarray(hidden), jnp.asarray(positions)[..., None], axis=1)
    return mesh.place(found, ("batch", None, None))


def sample_replacements(
    key: jax.Array,
    logits: jax.Array,
    tokens: jax.Array,
    positions: jax.Array,
    targets: jax.Array,
) -> tuple[jax.Array, jax.Array]:
    """Replaces the masked tokens by draws from a generator (Clark et al. 2020, section 3).

    The draws are argmax(logits + Gumbel noise), which follows the softmax. No gradient flows from
    the result to the logits (section 3: it is difficult to get through sampling).

    Args:
        key: for the noise; or one for each row, [B], so that a row's draws are its own.
        logits: [B, P, V], the generator's at the positions.
        tokens: int32 [B, S], the rows before or after masking: they differ at positions only.
        positions: int32 [B, P], as in `Masked`.
        targets: int32 [B, P], the original tokens there; -1 behind the last (`targets_at`).

    Returns:
        The corrupted rows [B, S], and where a token is not the original one, bool [B, S]: a draw
        that happens to be the original counts as original.

    Raises:
        ValueError: shapes that do not fit together.
    """
    if positions.shape != targets.shape or positions.shape != logits.shape[:2]:
        raise ValueError(
            f"sample_replacements: logits {logits.shape} need positions and targets of "
            f"{logits.shape[:2]}, not {positions.shape} and {targets.shape}"
        )
    tokens, positions, targets = (
        mesh.place(jnp.asarray(x), ("batch", None)) for x in (tokens, positions, targets)
    )
    axes = ("batch", None, "vocab")
    wide = mesh.place(jax.lax.stop_gradient(jnp.asarray(logits, jnp.float32)), axes)
    if key.ndim:
        noise = jax.vmap(lambda one: jax.random.gumbel(one, wide.shape[1:], wide.dtype))(key)
        noise = mesh.place(noise, axes)
    else:
        noise = mesh.sharded(jax.random.gumbel, axes)(key, wide.shape, wide.dtype)
    sampled = jnp.argmax(wide + noise, axis=-1).astype(tokens.dtype)

    # Beyond the row's end, where a write is dropped.
    places = jnp.where(targets >= 0, positions, tokens.shape[1])
    corrupted = _write(tokens, places, sampled)
    replaced = _write(jnp.zeros_like(tokens, dtype=bool), places, sampled != targets)
    return corrupted, replaced


def _write(rows: jax.Array, places: jax.Array, values: jax.Array) -> jax.Array:
    """Rows [B, S] with values [B, P] at their places."""

    def one(row, places, values):
        return row.at[places].set(values, mode="drop")

    return jax.vmap(one)(rows, places, values)
