"""Looks up parts of arrays that are split over a mesh, as indexing would without one."""

import jax
import jax.numpy as jnp

from llmjax import mesh


def take_rows(x: jax.Array, rows: jax.Array, axes: mesh.Axes) -> jax.Array:
    """The rows of x [P, ...] with these numbers [B], split as `axes` say; -1 is any row."""
    everywhere = mesh.place(x, (None, *axes[1:]))
    return mesh.sharded(everywhere.at[jnp.maximum(rows, 0)].get, axes)()


def gather_positions(x: jax.Array, positions: jax.Array) -> jax.Array:
    """What stands at some positions of each row, [B, P, ...].

    Args:
        x: [B, S, ...]: hidden states [B, S, D], say, or tokens [B, S].
        positions: int32 [B, P] in [0, S).
    """
    whole = ("batch", *(None,) * (x.ndim - 1))
    # Rows are a batch axis of this look-up, so each device finds those of its own.
    x, positions = mesh.place(jnp.asarray(x), whole), jnp.asarray(positions)
    at = jnp.expand_dims(positions, tuple(range(2, x.ndim)))
    return mesh.place(jnp.take_along_axis(x, at, axis=1), whole)
