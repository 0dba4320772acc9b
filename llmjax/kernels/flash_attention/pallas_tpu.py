"""Attention by tiles that stay in a TPU core's memory (FlashAttention-2, Dao 2023).

Tiles hold keys by queries: maxima and sums over keys then run down the sublanes, and the numbers
that a query has one of (its log-sum-exp, say) lie along the lanes, where they take no padding.
The query heads of a group are rows of one tile, so keys and values are read once for all of them.
The grid has as many steps as the mask leaves blocks: a window costs its width. A causal mask skips
the rest of a row of tiles, whose keys are not even fetched.
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from llmjax.kernels import dropout
from llmjax.kernels.cap import bend
from llmjax.kernels.flash_attention.tiles import Tiles, make_tiles
from llmjax.kernels.tiling import LOWEST, column, pad, product


class Options(NamedTuple):
    """What a kernel is compiled for: of `api.flash_attention`, and `interpret` of Pallas."""

    scale: float
    cap: float
    rate: float
    interpret: bool


@functools.partial(jax.custom_vjp, nondiff_argnums=(5,))
def attention(
    query, key, value, mask, draw: dropout.Draw, options: Options
) -> tuple[jax.Array, jax.Array]:
    """As `api.flash_attention_with_log_sum`."""
    return _forward(query, key, value, mask, draw, options)[0]


def _forward(query, key, value, mask, draw, options):
    inputs = _Inputs(query, key, value, mask, draw)
    tiles = inputs.tiles
    channels = query.shape[-1]
    out, log_sums = inputs.call(
        functools.partial(_forward_kernel, tiles, options),
        by_queries=True,
        more=(),
        outs=("query", "per_query"),
        scratch=[(1, tiles.rows), (1, tiles.rows), (channels, tiles.rows)],
        products=2,
        interpret=options.interpret,
    )
    found = inputs.per_row(log_sums)
    found = jnp.where(found == jnp.inf, -jnp.inf, found)
    return (inputs.from_rows(out), found), (query, key, value, mask, draw, out, log_sums)


def _backward(options, residuals, grads):
    query, key, value, mask, draw, out, log_sums = residuals
    inputs = _Inputs(query, key, value, mask, draw)
    tiles = inputs.tiles
    grad, grad_sum = (inputs.to_rows(x) for x in grads)
    # As in `xla`: the log-sum-exp's gradient is part of what a row's scores have in common.
    delta = inputs.per_query(jnp.sum(out.astype(jnp.float32) * grad, axis=-1) - grad_sum)
    more = (("query", grad), ("per_query", log_sums), ("per_query", delta))
    channels = query.shape[-1]
    call = functools.partial(inputs.call, more=more, interpret=options.interpret)
    (grad_query,) = call(
        functools.partial(_query_kernel, tiles, options),
        by_queries=True,
        outs=("query",),
        scratch=[(channels, tiles.rows)],
        products=3,
    )
    grad_key, grad_value = call(
        functools.partial(_key_kernel, tiles, options),
        by_queries=False,
        outs=("key", "key"),
        scratch=[(tiles.key_block, channels)] * 2,
        products=4,
    )
    keys = key.shape[2]
    return inputs.from_rows(grad_query), grad_key[:, :, :keys], grad_value[:, :, :keys], None, None


attention.defvjp(_forward, _backward)


class _Inputs:
    """The arrays in the kernels' layouts, padded to whole blocks, and how to run a kernel on them.

    "query" arrays are [B, K, G, S, C], "key" arrays [B, K, T, C], and what a query has one of,
    "per_query", is [B, K, blocks, 1, rows].
    """

    def __init__(self, query, key, value, mask, draw) -> None:
        self.batch, self.kv_heads, keys, self.channels = key.shape
        groups = query.shape[1] // self.kv_heads
        self.tiles = tiles = make_tiles(query.shape[2], keys, groups, mask)
        self.dtype = query.dtype
        self.varying = jax.typeof(query).manual_axis_type
        offset = jnp.zeros(self.batch, jnp.int32) if mask.offset is None else mask.offset
        self.scalars = (offset, *draw)
        self.arrays = [("query", self.to_rows(query)), ("key", pad(key, 2, tiles.key_block))]
        self.arrays.append(("key", pad(value, 2, tiles.key_block)))
        if tiles.segments:
            segments = mask.segment_ids[:, None]
            self.arrays.append(("query_segments", pad(segments, 2, tiles.query_block)))
            self.arrays.append(("key_segments", pad(segments, 2, tiles.key_block)))

    def to_rows(self, x):
        """[B, K·G, S, ...] to [B, K, G, S, ...], padded."""
        x = x.reshape(self.batch, self.kv_heads, self.tiles.groups, *x.shape[2:])
        return pad(x, 3, self.tiles.query_block)

    def from_rows(self, x):
        """Inverts `to_rows`."""
        x = x[:, :, :, : self.tiles.queries]
        return x.reshape(self.batch, -1, *x.shape[3:])

    def per_query(self, x):
        """[B, K, G, S] to [B, K, blocks, 1, rows]."""
        blocks = x.reshape(*x.shape[:3], self.tiles.query_blocks, self.tiles.query_block)
        rows = jnp.swapaxes(blocks, 2, 3)
        return rows.reshape(*rows.shape[:3], 1, self.tiles.rows)

    def per_row(self, x):
        """Inverts `per_query`, to [B, K·G, S]."""
        blocks = x.reshape(*x.shape[:3], self.tiles.groups, self.tiles.query_block)
        rows = jnp.swapaxes(blocks, 2, 3)
        return self.from_rows(rows.reshape(*rows.shape[:3], -1))

    def call(self, kernel, *, by_queries, more, outs, scratch, products, interpret):
        """Runs a kernel on each tile: all those of a block of queries, or of keys, in turn."""
        tiles = self.tiles
        blocks, steps = (
            (tiles.query_blocks, tiles.key_steps)
            if by_queries
            else (tiles.key_blocks, tiles.query_steps)
        )
        arrays = [*self.arrays, *more]
        spec = pltpu.PrefetchScalarGridSpec(
            num_scalar_prefetch=len(self.scalars),
            grid=(self.batch, self.kv_heads, blocks, steps),
            in_specs=[self._block(kind, by_queries) for kind, _ in arrays],
            out_specs=[self._block(kind, by_queries) for kind in outs],
            scratch_shapes=[pltpu.VMEM(shape, jnp.float32) for shape in scratch],
        )
        pairs = self.batch * self.kv_heads * tiles.pairs
        operands = [array for _, array in arrays]
        cost = pl.CostEstimate(
            flops=2 * products * pairs * self.channels,
            transcendentals=pairs,
            bytes_accessed=sum(x.size * x.dtype.itemsize for x in operands),
        )
        run = pl.pallas_call(
            kernel,
            grid_spec=spec,
            out_shape=[self._shape(kind) for kind in outs],
            compiler_params=pltpu.CompilerParams(
                dimension_semantics=("parallel", "parallel", "parallel", "arbitrary")
            ),
            cost_estimate=cost,
            interpret=interpret,
            name=f"flash_attention{kernel.func.__name__}",
        )
        return run(*self.scalars, *operands)

    def _block(self, kind: str, by_queries: bool) -> pl.BlockSpec:
        tiles = self.tiles

        def index(b, h, block, step, offset, *_):
            queries, keys, _ = _blocks(tiles, by_queries, block, step, offset[b])
            return {
                "query": (b, h, 0, queries, 0),
                "key": (b, h, keys, 0),
                "per_query": (b, h, queries, 0, 0),
                "query_segments": (b, 0, queries),
                "key_segments": (b, 0, keys),
            }[kind]

        shape = {
            "query": (1, 1, tiles.groups, tiles.query_block, self.channels),
            "key": (1, 1, tiles.key_block, self.channels),
            "per_query": (1, 1, 1, 1, tiles.rows),
            "query_segments": (1, 1, tiles.query_block),
            "key_segments": (1, 1, tiles.key_block),
        }[kind]
        return pl.BlockSpec(shape, index)

    def _shape(self, kind: str) -> jax.ShapeDtypeStruct:
        tiles, heads = self.tiles, (self.batch, self.kv_heads)
        queries = tiles.query_blocks * tiles.query_block
        shape, dtype = {
            "query": ((*heads, tiles.groups, queries, self.channels), self.dtype),
            "key": ((*heads, tiles.key_blocks * tiles.key_block, self.channels), self.dtype),
            "per_query": ((*heads, tiles.query_blocks, 1, tiles.rows), jnp.float32),
        }[kind]
        return jax.ShapeDtypeStruct(shape, dtype, manual_axis_type=self.varying)


def _blocks(tiles: Tiles, by_queries: bool, block, step, offset):
    """The blocks of queries and of keys in a step of the grid, and whether the mask lets it be.

    Steps behind the last repeat it, so that nothing is fetched for them.
    """
    first, last = (tiles.keys_of if by_queries else tiles.queries_of)(block, offset)
    other = jnp.maximum(jnp.minimum(first + step, last), 0)
    queries, keys = (block, other) if by_queries else (other, block)
    return queries, keys, first + step <= last


class _Tile:
    """What one step of a grid works on: keys by queries."""

    def __init__(self, tiles: Tiles, options: Options, by_queries: bool, refs) -> None:
        self.tiles, self.options = tiles, options
        offset, self._seeds, heads, query, key, value, *rest = refs
        count = 2 if tiles.segments else 0
        self._segments, self.refs = rest[:count], rest[count:]
        batch, step = pl.program_id(0), pl.program_id(3)
        self._first_head = heads[batch, pl.program_id(1)]
        self._offset = offset[batch]
        self._queries, self._keys, self._live = _blocks(
            tiles, by_queries, pl.program_id(2), step, self._offset
        )
        self.is_first, self.is_last = step == 0, step == pl.num_programs(3) - 1
        self.key, self.value = key, value
        self._query = query

    def query(self):
        """[rows, C]."""
        return _rows(self._query)

    def run(self, body) -> None:
        """Runs `body(masked)` if the mask leaves anything; not masked if it leaves everything."""
        if self.tiles.segments:
            pl.when(self._live)(lambda: body(True))
            return
        whole = self.tiles.whole(self._queries, self._keys, self._offset)
        pl.when(self._live & whole)(lambda: body(False))
        pl.when(self._live & ~whole)(lambda: body(True))

    def scores(self, masked: bool):
        """Scores [keys, rows], `LOWEST` where the mask forbids, and the slope of their bending."""
        scores = product(self.key[0, 0], self.query(), 1, 1) * self.options.scale
        scores, slope = bend(scores, self.options.cap)
        return (jnp.where(self._allowed(), scores, LOWEST) if masked else scores), slope

    def drop(self, weights):
        """Dropout: weights [keys, rows] with some zeroed and the rest scaled up."""
        rate, tiles = self.options.rate, self.tiles
        if not rate:
            return weights
        number = jax.lax.broadcasted_iota(jnp.int32, (1, tiles.rows), 1)
        head = self._first_head + number // tiles.query_block
        query = self._queries * tiles.query_block + number % tiles.query_block
        keep = dropout.survives(self._seeds, head, query, self._key_numbers(), rate)
        return jnp.where(keep, weights / (1.0 - rate), 0.0)

    def _key_numbers(self):
        numbers = jax.lax.broadcasted_iota(jnp.int32, (self.tiles.key_block, 1), 0)
        return self._keys * self.tiles.key_block + numbers

    def _allowed(self):
        tiles = self.tiles
        rows = jax.lax.broadcasted_iota(jnp.int32, (1, tiles.rows), 1) % tiles.query_block
        positions = self._offset + self._queries * tiles.query_block + rows
        allowed = tiles.allowed(positions, self._key_numbers())
        if not self._segments:
            return allowed
        queries, keys = (ref[0] for ref in self._segments)
        queries = jnp.concatenate([queries] * tiles.groups, axis=1)
        keys = column(keys)
        return allowed & (queries == keys) & (queries != 0)


def _forward_kernel(tiles: Tiles, options: Options, *refs) -> None:
    tile = _Tile(tiles, options, True, refs)
    out, log_sums, highest, total, mixed = tile.refs

    @pl.when(tile.is_first)
    def _begin():
        highest[...] = jnp.full(highest.shape, LOWEST)
        total[...] = jnp.zeros(total.shape)
        mixed[...] = jnp.zeros(mixed.shape)

    @tile.run
    def _attend(masked):
        scores, _ = tile.scores(masked)
        peak = jnp.maximum(highest[...], jnp.max(scores, axis=0, keepdims=True))
        # While a row has seen nothing, its weights must come out as exp(LOWEST - 0) = 0.
        base = jnp.where(peak == LOWEST, 0.0, peak) if masked else peak
        weights = jnp.exp(scores - base)
        shrink = jnp.exp(highest[...] - base)
        highest[...] = peak
        total[...] = total[...] * shrink + jnp.sum(weights, axis=0, keepdims=True)
        value = tile.value[0, 0]
        dropped = tile.drop(weights).astype(value.dtype)
        mixed[...] = mixed[...] * shrink + product(value, dropped, 0, 0)

    @pl.when(tile.is_last)
    def _finish():
        seen = total[...] > 0
        divisor = jnp.where(seen, total[...], 1.0)
        _store(out, (mixed[...] / divisor).T)
        # The row that sees nothing gets +inf, for which the backward pass finds weights of 0.
        log_sums[0, 0, 0] = jnp.where(seen, highest[...] + jnp.log(divisor), jnp.inf)


def _gradient(tile: _Tile, masked: bool):
    """The weights after dropout, and the gradient by the scores before scaling, [keys, rows]."""
    grad, log_sums, delta = tile.refs[:3]
    scores, slope = tile.scores(masked)
    weights = jnp.exp(scores - log_sums[0, 0, 0])
    grad_weights = tile.drop(product(tile.value[0, 0], _rows(grad), 1, 1))
    grad_scores = weights * (grad_weights - delta[0, 0, 0]) * slope * tile.options.scale
    return tile.drop(weights), grad_scores.astype(tile.key.dtype)


def _query_kernel(tiles: Tiles, options: Options, *refs) -> None:
    tile = _Tile(tiles, options, True, refs)
    grad_query, total = tile.refs[3:]

    @pl.when(tile.is_first)
    def _begin():
        total[...] = jnp.zeros(total.shape)

    @tile.run
    def _add(masked):
        _, grad_scores = _gradient(tile, masked)
        total[...] += product(tile.key[0, 0], grad_scores, 0, 0)

    @pl.when(tile.is_last)
    def _finish():
        _store(grad_query, total[...].T)


def _key_kernel(tiles: Tiles, options: Options, *refs) -> None:
    tile = _Tile(tiles, options, False, refs)
    grad_key, grad_value, key_total, value_total = tile.refs[3:]

    @pl.when(tile.is_first)
    def _begin():
        key_total[...] = jnp.zeros(key_total.shape)
        value_total[...] = jnp.zeros(value_total.shape)

    @tile.run
    def _add(masked):
        weights, grad_scores = _gradient(tile, masked)
        grad = _rows(tile.refs[0])
        key_total[...] += product(grad_scores, tile.query(), 1, 0)
        value_total[...] += product(weights.astype(grad.dtype), grad, 1, 0)

    @pl.when(tile.is_last)
    def _finish():
        grad_key[0, 0] = key_total[...].astype(grad_key.dtype)
        grad_value[0, 0] = value_total[...].astype(grad_value.dtype)


def _rows(ref):
    """A block [1, 1, G, n, C] as [G·n, C]."""
    return ref[0, 0].reshape(-1, ref.shape[-1])


def _store(ref, rows) -> None:
    """Inverts `_rows`."""
    ref[0, 0] = rows.reshape(ref.shape[2:]).astype(ref.dtype)
