"""The tiles of attention on a GPU: loads, scores and their gradient.

Scores are in base two, because exp2 is a single instruction.
"""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton as plgpu

from llmjax.kernels import dropout
from llmjax.kernels.cap import bend
from llmjax.kernels.flash_attention.tiles import Options, Tiles
from llmjax.kernels.tiling import LOWEST, product

LOG2E = math.log2(math.e)
LEAST = 16  # channels that a tensor core multiplies at once


class Arrays(NamedTuple):
    """Inputs of a kernel: arrays, or references to a program's part of them.

    Attributes:
        query: [B, H, S, C]; a program gets some heads of one row.
        key: [B, K, T, C]; a program gets one head of one row.
        value: as `key`.
        segments: int32 [B, S], or None.
        key_segments: int32 [B, T], or None.
        offset: int32 [B], or None.
        seeds: int32 [3], or None without dropout.
        heads: int32 [B, H], a query head's number among those of all rows, or None without dropout.
        grad: as `query`; None in the forward pass, like the next two.
        log_sums: [B, H, S].
        delta: [B, H, S].
    """

    query: Any
    key: Any
    value: Any
    segments: Any
    key_segments: Any
    offset: Any
    seeds: Any
    heads: Any
    grad: Any = None
    log_sums: Any = None
    delta: Any = None


class Part(NamedTuple):
    """The queries or the keys of a tile, n of them.

    Attributes:
        heads: int32 [n], each query's head among the program's; None for keys.
        numbers: int32 [n], positions.
        live: bool [n], which of them exist; None if all do.
        segments: int32 [n], 0 for those that do not exist; None without segments.
    """

    heads: jax.Array | None
    numbers: jax.Array
    live: jax.Array | None
    segments: jax.Array | None


class Rows(NamedTuple):
    """Per-query inputs of the gradients: query and grad [n, C], log_sums and delta [n]."""

    query: jax.Array
    grad: jax.Array
    log_sums: jax.Array
    delta: jax.Array


class Program:
    """Computes the tiles of one program.

    Arguments of its methods named `queries` and `keys` are of type `Part`.
    """

    def __init__(self, tiles: Tiles, options: Options, arrays: Arrays, by_queries: bool) -> None:
        self.tiles, self.options, self.arrays = tiles, options, arrays
        self.query_axis, self.key_axis = (0, 1) if by_queries else (1, 0)
        self.offset = 0 if arrays.offset is None else arrays.offset[...]

    def queries(self, block, head=0) -> Part:
        """A block's queries in `tiles.groups` heads from `head` on, padded to a power of two."""
        tiles = self.tiles
        rows = pl.next_power_of_2(tiles.rows)
        row = jnp.arange(rows, dtype=jnp.int32)
        numbers = block * tiles.query_block + row % tiles.query_block
        limits = []
        if rows > tiles.rows:
            limits.append(row < tiles.rows)
        if tiles.queries % tiles.query_block:
            limits.append(numbers < tiles.queries)
        segments = self.arrays.segments
        return self._part(head + row // tiles.query_block, numbers, _all(limits), segments)

    def keys(self, block, whole: bool = False) -> Part:
        """The keys of a block; `whole` asserts that all of them exist."""
        tiles = self.tiles
        numbers = block * tiles.key_block + jnp.arange(tiles.key_block, dtype=jnp.int32)
        ragged = not whole and tiles.keys % tiles.key_block > 0
        live = numbers < tiles.keys if ragged else None
        return self._part(None, numbers, live, self.arrays.key_segments)

    def rows(self, queries: Part) -> Rows:
        """Loads the `Rows` of queries."""
        arrays = self.arrays
        # Queries that do not exist, or see no key, have inf, which gives weights of 0.
        log_sums = load(arrays.log_sums, queries, jnp.inf) * LOG2E
        grad, delta = load(arrays.grad, queries), load(arrays.delta, queries)
        return Rows(load(arrays.query, queries), grad, log_sums, delta)

    def scores(self, query, key, queries: Part, keys: Part, masked: bool) -> tuple[Any, Any]:
        """Scores in base two, `LOWEST` where masked, and the derivative of their cap."""
        scale, cap = self.options.scale * LOG2E, self.options.cap * LOG2E
        scores, slope = bend(self.product(query, key) * scale, cap)
        if masked:
            scores = jnp.where(self._allowed(queries, keys), scores, LOWEST)
        return scores, slope

    def product(self, query, key) -> jax.Array:
        """The product of [queries, C] and [keys, C] over channels, in the tile's orientation."""
        return product(query, key, 1, 1) if self.query_axis == 0 else product(key, query, 1, 1)

    def drop(self, queries: Part, keys: Part, *weights) -> tuple[jax.Array, ...]:
        """Dropout: tiles of weights with some zeroed and the rest scaled up."""
        rate = self.options.rate
        if not rate:
            return weights
        seeds = tuple(self.arrays.seeds[n] for n in range(dropout.SEEDS))
        head = self.arrays.heads[0] + self._by_query(queries.heads)
        numbers = self._by_query(queries.numbers), self._by_key(keys.numbers)
        keep = dropout.survives(seeds, head, *numbers, rate)
        return tuple(jnp.where(keep, x * (1.0 / (1.0 - rate)), 0.0) for x in weights)

    def gradient(
        self, rows: Rows, key, value, queries: Part, keys: Part, masked: bool
    ) -> tuple[jax.Array, jax.Array]:
        """The weights after dropout and the gradient of the scores without the scale, as tiles."""
        scores, slope = self.scores(rows.query, key, queries, keys, masked)
        weights = jnp.exp2(scores - self._by_query(rows.log_sums))
        kept, grad_weights = self.drop(queries, keys, weights, self.product(rows.grad, value))
        grad_scores = weights * (grad_weights - self._by_query(rows.delta)) * slope
        return kept.astype(value.dtype), grad_scores.astype(key.dtype)

    def over(self, blocks, whole, body: Callable, carry) -> Any:
        """Loops `carry = body(block, carry, masked)` over blocks [first, stop).

        Blocks in `whole`, such as `tiles.whole_keys_of`, are not masked, unless there are segments.
        """

        def go(first, stop, carry, masked):
            return jax.lax.fori_loop(first, stop, lambda i, carry: body(i, carry, masked), carry)

        first, stop = blocks
        if self.tiles.segments:
            return go(first, stop, carry, True)
        start, end = whole
        if start is not None:
            start = jnp.minimum(jnp.maximum(first, start), stop)
            carry = go(first, start, carry, True)
            first = start
        if end is None:
            return go(first, stop, carry, False)
        end = jnp.minimum(jnp.maximum(first, end), stop)
        return go(end, stop, go(first, end, carry, False), True)

    def _part(self, heads, numbers, live, segments) -> Part:
        part = Part(None, numbers, live, None)
        return Part(heads, numbers, live, None if segments is None else load(segments, part))

    def _by_query(self, x):
        return jnp.expand_dims(x, self.key_axis)

    def _by_key(self, x):
        return jnp.expand_dims(x, self.query_axis)

    def _allowed(self, queries: Part, keys: Part):
        positions = self._by_query(self.offset + queries.numbers)
        allowed = self.tiles.allowed(positions, self._by_key(keys.numbers))
        if not self.tiles.segments:
            return allowed
        own, other = self._by_query(queries.segments), self._by_key(keys.segments)
        return allowed & (own == other) & (own != 0)


def load(ref, part: Part, other: float = 0) -> jax.Array:
    """Loads [n], or [n, C] with C padded to a power of two; missing elements get `other`."""
    index, live = _locate(ref, part)
    return plgpu.load(ref.at[index], mask=live, other=None if live is None else other)


def store(ref, part: Part, x) -> None:
    """Inverts `load`."""
    index, live = _locate(ref, part)
    plgpu.store(ref.at[index], x.astype(ref.dtype), mask=live)


def channels(ref) -> int:
    """The channels of a reference, padded to a power of two that a tensor core accepts."""
    return max(LEAST, pl.next_power_of_2(ref.shape[-1]))


def _locate(ref, part: Part):
    """The index of a part in a reference, and the mask of its existing elements."""
    index: tuple[jax.Array, ...] = (part.numbers,)
    if part.heads is not None:
        index = (part.heads, part.numbers)
    if len(index) == ref.ndim:
        return index, part.live
    column = jnp.arange(channels(ref), dtype=jnp.int32)
    limits = [] if part.live is None else [part.live[:, None]]
    if len(column) > ref.shape[-1]:
        limits.append((column < ref.shape[-1])[None])
    index = (*(rows[:, None] for rows in index), column[None])
    live = _all(limits)
    shape = len(part.numbers), len(column)
    return index, None if live is None else jnp.broadcast_to(live, shape)


def _all(limits):
    """The conjunction of all limits; None without any."""
    result = None
    for limit in limits:
        result = limit if result is None else result & limit
    return result
