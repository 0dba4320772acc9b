"""One tile of attention in a TPU core: scores, their softmax over the keys, and gradients.

Tiles are [keys, queries]: maxima and sums over keys then run over sublanes, and per-query numbers,
such as log-sum-exps, lie along lanes, where they need no padding.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl

from llmjax.kernels import dropout
from llmjax.kernels.cap import bend
from llmjax.kernels.flash_attention.tiles import Options, Tiles
from llmjax.kernels.tiling import LOWEST, column, product


class Place(NamedTuple):
    """A kernel's place in its grid.

    Attributes:
        batch: the row.
        head: the key head.
        queries: the block of queries.
        keys: the block of keys.
        live: whether any pair of the tile attends, by position.
        is_first: whether this is the first step that adds to a result.
        is_last: whether this is the last step that adds to it.
    """

    batch: Any
    head: Any
    queries: Any
    keys: Any
    live: Any
    is_first: Any
    is_last: Any


class Tile:
    """The tile [keys, queries] of one grid step.

    It takes references to scalars (offsets and a `Draw`), query, key, value and, if the mask has
    any, segments of queries and of keys; the remaining references stay in `refs`.
    """

    def __init__(self, tiles: Tiles, options: Options, place: Place, refs) -> None:
        self.tiles, self.options, self.place = tiles, options, place
        offset, self._seeds, heads, query, self.key, self.value, *rest = refs
        count = 2 if tiles.segments else 0
        self._segments, self.refs = rest[:count], rest[count:]
        self._first_head = heads[place.batch, place.head]
        self._offset = offset[place.batch]
        self._query = query

    def query(self) -> jax.Array:
        """The queries [rows, C]."""
        return load(self._query)

    def run(self, body) -> None:
        """Runs `body(masked)` if any pair attends; masked is False if all pairs do."""
        live = self.place.live
        if self.tiles.segments:
            pl.when(live)(lambda: body(True))
            return
        whole = self.tiles.whole(self.place.queries, self.place.keys, self._offset)
        pl.when(live & whole)(lambda: body(False))
        pl.when(live & ~whole)(lambda: body(True))

    def products(self) -> jax.Array:
        """Unscaled scores, [keys, rows]."""
        return product(self.key[0, 0], self.query(), 1, 1)

    def scores(self, masked: bool) -> tuple[jax.Array, jax.Array | float]:
        """Scores [keys, rows], `LOWEST` where masked, and the derivative of their cap."""
        scores, slope = bend(self.products() * self.options.scale, self.options.cap)
        return (jnp.where(self._allowed(), scores, LOWEST) if masked else scores), slope

    def drop(self, weights) -> jax.Array:
        """Dropout: weights [keys, rows] with some zeroed and the rest scaled up."""
        rate, tiles = self.options.rate, self.tiles
        if not rate:
            return weights
        number = jax.lax.broadcasted_iota(jnp.int32, (1, tiles.rows), 1)
        head = self._first_head + number // tiles.query_block
        query = self.place.queries * tiles.query_block + number % tiles.query_block
        keep = dropout.survives(self._seeds, head, query, self._key_numbers(), rate)
        return jnp.where(keep, weights / (1.0 - rate), 0.0)

    def _key_numbers(self):
        numbers = jax.lax.broadcasted_iota(jnp.int32, (self.tiles.key_block, 1), 0)
        return self.place.keys * self.tiles.key_block + numbers

    def _allowed(self):
        tiles = self.tiles
        rows = jax.lax.broadcasted_iota(jnp.int32, (1, tiles.rows), 1) % tiles.query_block
        positions = self._offset + self.place.queries * tiles.query_block + rows
        allowed = tiles.allowed(positions, self._key_numbers())
        if not self._segments:
            return allowed
        queries, keys = (ref[0] for ref in self._segments)
        queries = jnp.concatenate([queries] * tiles.groups, axis=1)
        keys = column(keys)
        return allowed & (queries == keys) & (queries != 0)


def accumulate(tile: Tile, out, log_sums, highest, total, mixed) -> None:
    """One step of the online softmax over all keys and of the weighted mean of their values.

    Args:
        tile: the tile to add.
        out: the mean, written in the last step.
        log_sums: the log-sum-exp of a row's scores; +inf if it sees no key, which gives weights
            of 0 in `gradient`.
        highest: scratch [1, rows].
        total: scratch [1, rows].
        mixed: scratch [C, rows].
    """

    @pl.when(tile.place.is_first)
    def _begin():
        highest[...] = jnp.full(highest.shape, LOWEST)
        total[...] = jnp.zeros(total.shape)
        mixed[...] = jnp.zeros(mixed.shape)

    @tile.run
    def _attend(masked):
        scores, _ = tile.scores(masked)
        peak = jnp.maximum(highest[...], jnp.max(scores, axis=0, keepdims=True))
        # Until a row has seen a key, its weights must be exp(LOWEST - 0) = 0.
        base = jnp.where(peak == LOWEST, 0.0, peak) if masked else peak
        weights = jnp.exp(scores - base)
        shrink = jnp.exp(highest[...] - base)
        highest[...] = peak
        total[...] = total[...] * shrink + jnp.sum(weights, axis=0, keepdims=True)
        value = tile.value[0, 0]
        dropped = tile.drop(weights).astype(value.dtype)
        mixed[...] = mixed[...] * shrink + product(value, dropped, 0, 0)

    @pl.when(tile.place.is_last)
    def _finish():
        seen = total[...] > 0
        divisor = jnp.where(seen, total[...], 1.0)
        store(out, (mixed[...] / divisor).T)
        log_sums[0, 0, 0] = jnp.where(seen, highest[...] + jnp.log(divisor), jnp.inf)


def gradient(tile: Tile, masked: bool, grad, log_sums, delta) -> tuple[jax.Array, jax.Array]:
    """The weights after dropout, and the gradient of `Tile.products`, float32 [keys, rows]."""
    scores, slope = tile.scores(masked)
    weights = jnp.exp(scores - log_sums[0, 0, 0])
    grad_weights = tile.drop(product(tile.value[0, 0], load(grad), 1, 1))
    grad_scores = weights * (grad_weights - delta[0, 0, 0]) * slope * tile.options.scale
    return tile.drop(weights), grad_scores


def load(ref) -> jax.Array:
    """Loads a block [1, 1, ..., n, C] as [rows, C]."""
    return ref[0, 0].reshape(-1, ref.shape[-1])


def store(ref, rows) -> None:
    """Inverts `load`."""
    ref[0, 0] = rows.reshape(ref.shape[2:]).astype(ref.dtype)
