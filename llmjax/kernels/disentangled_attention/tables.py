"""Tables of relative positions in order of distance."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from llmjax import mesh


class Tables(NamedTuple):
    """Positions in order of distance, each float32 [H, 2·S - 1, C] or None.

    Attributes:
        c2p: from distance S - 1 down to 1 - S.
        p2c: from distance 1 - S up to S - 1.
    """

    c2p: jax.Array | None
    p2c: jax.Array | None


def by_distance(
    c2p: jax.Array | None,
    p2c: jax.Array | None,
    rows: np.ndarray,
    padding: tuple[int, int] = (0, 0),
) -> Tables:
    """Expands tables [H, R, C]. Distances may share a row, whose gradient is summed in float32.

    Args:
        c2p: keys of relative positions.
        p2c: queries of relative positions.
        rows: int [2·S - 1], as in `api.disentangled_attention`.
        padding: number of extra copies of each table's first and last position.
    """

    def spread(table, rows):
        if table is None:
            return None
        wide = jnp.asarray(table, jnp.promote_types(table.dtype, jnp.float32))
        rows = np.pad(rows, padding, "edge")
        return mesh.sharded(wide.at[:, rows].get, ("heads", None, None))()

    return Tables(spread(c2p, rows), spread(p2c, rows[::-1]))
