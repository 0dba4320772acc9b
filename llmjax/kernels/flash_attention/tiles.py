"""The tiles of attention kernels: sizes, counts, and the ranges of blocks that the mask allows."""

import dataclasses
import functools
import math
import operator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from llmjax.kernels import tuning
from llmjax.kernels.flash_attention.mask import Mask, within_reach

Index = Any  # an int, or an int32 scalar in a kernel

LANES = 128
ROWS = 1024  # queries in a tile, counted over all heads that share a key head
SCORES = 512 * 1024  # pairs in a tile


Result = tuple[jax.Array, jax.Array]  # outputs and log-sum-exps; 0 and -inf without any key
Gradients = tuple[jax.Array, jax.Array, jax.Array]  # of queries, keys and values


class Options(NamedTuple):
    """Static options: those of `api.flash_attention`, and whether Pallas interprets the kernel."""

    scale: float
    cap: float
    rate: float
    interpret: bool


@dataclasses.dataclass(frozen=True)
class Tiles:
    """How the pairs of queries and keys of one key head are split into tiles.

    Attributes:
        queries: S.
        keys: T.
        query_block: positions in a block of queries; each position makes `groups` rows, one for
            each head that shares the key head.
        key_block: positions in a block of keys.
        groups: query heads per key head.
        behind: as in `Mask`.
        ahead: as in `Mask`.
        segments: whether the mask has segments.
    """

    queries: int
    keys: int
    query_block: int
    key_block: int
    groups: int
    behind: int | None
    ahead: int | None
    segments: bool

    @property
    def rows(self) -> int:
        """Queries in a tile."""
        return self.groups * self.query_block

    @property
    def query_blocks(self) -> int:
        """Blocks of queries; the last may be short."""
        return -(-self.queries // self.query_block)

    @property
    def key_blocks(self) -> int:
        """Blocks of keys; the last may be short."""
        return -(-self.keys // self.key_block)

    def keys_of(self, block: Index, offset: Index) -> tuple[Index, Index]:
        """The first and the last block of keys that a block of queries sees.

        Args:
            block: the block of queries.
            offset: the position of query 0 among the keys.
        """
        start = offset + block * self.query_block
        return self._range(
            start,
            start + self.query_block - 1,
            self.behind,
            self.ahead,
            self.key_block,
            self.key_blocks,
        )

    def queries_of(self, block: Index, offset: Index) -> tuple[Index, Index]:
        """The first and the last block of queries that see a block of keys."""
        start = block * self.key_block - offset
        return self._range(
            start,
            start + self.key_block - 1,
            self.ahead,
            self.behind,
            self.query_block,
            self.query_blocks,
        )

    def _range(self, start, stop, before, after, size, count):
        first = 0 if before is None else jnp.clip((start - before) // size, 0, count - 1)
        last = count - 1 if after is None else jnp.minimum((stop + after) // size, count - 1)
        return first, last

    def whole_keys_of(self, block: Index, offset: Index) -> tuple[Index | None, Index | None]:
        """Blocks [first, stop) of keys that all queries of a block see entirely, by position.

        None means from the first or to the last block. Bounds may lie outside of the blocks, and
        stop may be before first if there are no such blocks.
        """
        start = offset + block * self.query_block
        size = self.query_block
        first, stop = self._whole_range(start, size, self.behind, self.ahead, self.key_block)
        if self.keys % self.key_block == 0:
            return first, stop
        full = self.keys // self.key_block
        return first, full if stop is None else jnp.minimum(stop, full)

    def whole_queries_of(self, block: Index, offset: Index) -> tuple[Index | None, Index | None]:
        """Blocks [first, stop) of queries that all see a block of keys entirely; see above."""
        start = block * self.key_block - offset
        return self._whole_range(start, self.key_block, self.ahead, self.behind, self.query_block)

    def _whole_range(self, start, length, before, after, size):
        first = None if before is None else (start + length - 1 - before + size - 1) // size
        return first, None if after is None else (start + after + 1) // size

    def whole(self, queries: Index, keys: Index, offset: Index) -> jax.Array | bool:
        """Whether all pairs of a block of queries and a block of keys attend, by position."""
        first_query = offset + queries * self.query_block
        last_query = first_query + self.query_block - 1
        first_key = keys * self.key_block
        last_key = first_key + self.key_block - 1
        whole = last_key < self.keys
        if self.ahead is not None:
            whole &= last_key - first_query <= self.ahead
        if self.behind is not None:
            whole &= last_query - first_key <= self.behind
        return whole

    def allowed(self, queries: jax.Array, keys: jax.Array) -> jax.Array:
        """Whether queries at positions `queries` see keys at positions `keys`; broadcast."""
        limits = within_reach(queries, keys, self.behind, self.ahead)
        return functools.reduce(operator.and_, limits, keys < self.keys)

    @property
    def key_steps(self) -> int:
        """The maximum number of key blocks that a block of queries sees."""
        return self._steps(self.query_block, self.key_block, self.key_blocks)

    @property
    def query_steps(self) -> int:
        """The maximum number of query blocks that see a block of keys."""
        return self._steps(self.key_block, self.query_block, self.query_blocks)

    def _steps(self, fixed: int, size: int, count: int) -> int:
        if self.behind is None or self.ahead is None:
            return count
        span = fixed + self.behind + self.ahead
        return min(count, -(-(span - 1) // size) + 1)

    @property
    def pairs(self) -> int:
        """The approximate number of pairs that attend, over the query heads of one key head."""
        width = self.keys
        if self.behind is not None and self.ahead is not None:
            width = min(width, self.behind + self.ahead + 1)
        half = 2 if self.ahead == 0 and self.behind is None else 1
        return self.groups * self.queries * width // half


class Most(NamedTuple):
    """Sizes of a TPU's tiles for `tuning`: the maximum number of queries and of pairs."""

    rows: int
    scores: int


def make_tiles(query: jax.Array, key: jax.Array, mask: Mask) -> Tiles:
    """The tiles for a TPU: at most `ROWS` queries and `SCORES` pairs, but at least `LANES` wide.

    For few queries, as in decoding, a tile has no more rows than lanes: with 4 heads per key head,
    32 positions each. The compute for one query then takes less time than loading its keys.
    """
    (_, heads, queries, channels), (_, kv_heads, keys, _) = query.shape, key.shape
    groups = heads // kv_heads
    case = tuning.case(query.dtype, channels)
    rows, scores = tuning.sizes("flash_attention.pallas_tpu", case, Most(ROWS, SCORES))
    start = LANES if queries > LANES else min(LANES, max(16, LANES // math.gcd(groups, LANES)))
    query_block = _block(queries, start, rows // groups)
    key_block = _block(keys, LANES, scores // (groups * query_block))
    # Blocks that divide the keys avoid copying a cache to pad it.
    fair = range(max(LANES, key_block // 2), key_block + 1, LANES)
    key_block = max((size for size in fair if keys % size == 0), default=key_block)
    segments = mask.segment_ids is not None
    return Tiles(queries, keys, query_block, key_block, groups, mask.behind, mask.ahead, segments)


def _block(length: int, size: int, limit: int) -> int:
    """Doubles the size until it reaches the length, but not beyond the limit."""
    while size * 2 <= limit and size < length:
        size *= 2
    return size
