"""Attention masks as a compact description instead of a dense array."""

import functools
import operator

import jax
import jax.numpy as jnp
from flax import struct


@struct.dataclass
class Mask:
    """The pairs that may attend.

    Attributes:
        segment_ids: int32 [B, S], of packed rows: pairs with equal, non-zero segments attend; None
            for no segments.
        offset: int32 [B], the position of each row's first query among the keys, for example if
            the queries continue a cache; it may be before or after all keys. None means 0.
        key_segment_ids: int32 [B, T], segments of the keys, if they differ from those of the
            queries.
        causal: whether a query only sees keys up to its own position.
        window: a query only sees keys at a smaller distance; 0 for no limit.
    """

    segment_ids: jax.Array | None = None
    offset: jax.Array | None = None
    key_segment_ids: jax.Array | None = None
    causal: bool = struct.field(pytree_node=False, default=True)
    window: int = struct.field(pytree_node=False, default=0)

    @property
    def key_segments(self) -> jax.Array | None:
        """Segments of the keys."""
        return self.segment_ids if self.key_segment_ids is None else self.key_segment_ids

    @property
    def behind(self) -> int | None:
        """How far back from its position a query sees; None for no limit."""
        return self.window - 1 if self.window else None

    @property
    def ahead(self) -> int | None:
        """How far ahead of its position a query sees; None for no limit."""
        return 0 if self.causal else self.behind

    def key_range(self, start: int, stop: int, keys: int) -> tuple[int, int]:
        """The range of keys, out of `keys`, that queries [start, stop) may see; never empty."""
        if self.offset is not None:
            return 0, keys
        first = 0 if self.behind is None else max(0, start - self.behind)
        last = keys if self.ahead is None else stop + self.ahead
        return min(first, keys - 1), min(last, keys)

    def allowed(self, start: int, stop: int, keys: int, first: int = 0) -> jax.Array | None:
        """Whether queries [start, stop) see keys [first, keys): bool [B or 1, stop-start, ·].

        None when all do.
        """
        rows = jnp.arange(start, stop)[None, :, None]
        if self.offset is not None:
            rows = rows + self.offset[:, None, None]
        columns = jnp.arange(first, keys)[None, None, :]
        limits = within_reach(rows, columns, self.behind, self.ahead)
        segments = self.key_segments
        if self.segment_ids is not None and segments is not None:
            queries = self.segment_ids[:, start:stop, None]
            limits.append((queries == segments[:, None, first:keys]) & (queries != 0))
        return functools.reduce(operator.and_, limits) if limits else None


def within_reach(
    queries: jax.Array, keys: jax.Array, behind: int | None, ahead: int | None
) -> list[jax.Array]:
    """The conditions for queries to see keys at these positions, which are broadcast."""
    limits = []
    if ahead is not None:
        limits.append(keys - queries <= ahead)
    if behind is not None:
        limits.append(queries - keys <= behind)
    return limits
