"""Which query may attend to which key, described rather than stored."""

import jax
import jax.numpy as jnp
from flax import struct


@struct.dataclass
class Mask:
    """The pairs that may attend.

    Attributes:
        segment_ids: int32 [B, S], for self-attention over packed rows: pairs of equal, non-zero
            segments attend. None: all do.
        offset: int32 [B], the position of each row's first query among the keys, when the queries
            continue a cache. None: 0.
        causal: a query sees the keys up to its own position only.
    """

    segment_ids: jax.Array | None = None
    offset: jax.Array | None = None
    causal: bool = struct.field(pytree_node=False, default=True)

    def key_stop(self, query_stop: int, keys: int) -> int:
        """The number of leading keys that queries before `query_stop` may see at all."""
        return min(query_stop, keys) if self.causal and self.offset is None else keys

    def allowed(self, start: int, stop: int, keys: int) -> jax.Array | None:
        """Whether queries [start, stop) see keys [0, keys): bool [B or 1, stop-start, keys].

        None when all do.
        """
        allowed = None
        if self.causal:
            rows = jnp.arange(start, stop)[None, :, None]
            if self.offset is not None:
                rows = rows + self.offset[:, None, None]
            allowed = jnp.arange(keys)[None, None, :] <= rows
        if self.segment_ids is not None:
            queries = self.segment_ids[:, start:stop, None]
            same = (queries == self.segment_ids[:, None, :keys]) & (queries != 0)
            allowed = same if allowed is None else allowed & same
        return allowed
