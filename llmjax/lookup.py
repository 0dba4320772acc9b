"""Indexing into arrays that are split over a mesh."""

import jax
import jax.numpy as jnp

from llmjax import mesh


def take_rows(x: jax.Array, rows: jax.Array, axes: mesh.Axes) -> jax.Array:
    """The rows of x [P, ...] at indices [B], sharded by `axes`; index -1 gives an arbitrary row."""
    everywhere = mesh.place(x, (None, *axes[1:]))
    return mesh.sharded(everywhere.at[jnp.maximum(rows, 0)].get, axes)()


def gather_positions(x: jax.Array, positions: jax.Array) -> jax.Array:
    """The entries at some positions of each row, [B, P, ...].

    Args:
        x: [B, S, ...], such as hidden states [B, S, D] or tokens [B, S].
        positions: int32 [B, P] in [0, S).
    """
    whole = ("batch", *(None,) * (x.ndim - 1))
    # Rows are a batch dimension of this look-up, so each device only reads its own.
    x = mesh.place(jnp.asarray(x), whole)
    positions = mesh.place(jnp.asarray(positions), whole[:2])
    at = jnp.expand_dims(positions, tuple(range(2, x.ndim)))
    return mesh.place(jnp.take_along_axis(x, at, axis=1), whole)
