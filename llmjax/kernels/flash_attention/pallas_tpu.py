"""Attention by tiles that stay in a TPU core's memory (FlashAttention-2, Dao 2023).

The query heads of a group are rows of one tile, so keys and values are read once for all of them.
The grid has as many steps as a block has visible blocks, so a window costs its width. A causal mask
skips the rest of a row of tiles, and their keys are not even fetched.
"""

import functools

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from llmjax.kernels import dropout
from llmjax.kernels.flash_attention.tile_tpu import (
    Place,
    Tile,
    accumulate,
    gradient,
    load,
    store,
)
from llmjax.kernels.flash_attention.tiles import Gradients, Options, Result, Tiles, make_tiles
from llmjax.kernels.tiling import pad, product


def forward(query, key, value, mask, draw: dropout.Draw, options: Options) -> Result:
    """See `attend.Implementation`."""
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
    return inputs.from_rows(out), jnp.where(found == jnp.inf, -jnp.inf, found)


def backward(query, key, value, mask, draw, result: Result, grads: Result, options) -> Gradients:
    """See `attend.Implementation`."""
    inputs = _Inputs(query, key, value, mask, draw)
    tiles = inputs.tiles
    (out, log_sum), (grad, grad_sum) = result, grads
    # As in `xla`, the cotangent of the log-sum-exp joins delta.
    delta = jnp.sum(out.astype(jnp.float32) * grad, axis=-1) - grad_sum
    log_sum = jnp.where(log_sum == -jnp.inf, jnp.inf, log_sum)
    more = [("query", inputs.to_rows(grad))]
    more += [("per_query", inputs.per_query(inputs.to_rows(x))) for x in (log_sum, delta)]
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
    return inputs.from_rows(grad_query), grad_key[:, :, :keys], grad_value[:, :, :keys]


class _Inputs:
    """The arrays in the kernels' layouts, padded to whole blocks, and how to run a kernel on them.

    "query" arrays are [B, K, G, S, C], "key" arrays [B, K, T, C], and "per_query" arrays, with one
    number per query, [B, K, blocks, 1, rows].
    """

    def __init__(self, query, key, value, mask, draw) -> None:
        self.batch, self.kv_heads, _, self.channels = key.shape
        self.tiles = tiles = make_tiles(query, key, mask)
        self.dtype = query.dtype
        self.varying = jax.typeof(query).manual_axis_type
        offset = jnp.zeros(self.batch, jnp.int32) if mask.offset is None else mask.offset
        self.scalars = (offset, *draw)
        self.arrays = [("query", self.to_rows(query)), ("key", pad(key, 2, tiles.key_block))]
        self.arrays.append(("key", pad(value, 2, tiles.key_block)))
        if tiles.segments:
            own, other = mask.segment_ids[:, None], mask.key_segments[:, None]
            self.arrays.append(("query_segments", pad(own, 2, tiles.query_block)))
            self.arrays.append(("key_segments", pad(other, 2, tiles.key_block)))

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
        """Runs a kernel on every tile, block of queries by block of queries, or of keys."""
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
    """The blocks of queries and of keys of a grid step, and whether any of their pairs attend.

    Steps after the last repeat it, so that nothing is fetched for them.
    """
    first, last = (tiles.keys_of if by_queries else tiles.queries_of)(block, offset)
    other = jnp.maximum(jnp.minimum(first + step, last), 0)
    queries, keys = (block, other) if by_queries else (other, block)
    return queries, keys, first + step <= last


def _tile(tiles: Tiles, options: Options, by_queries: bool, refs) -> Tile:
    """The tile of the current grid step."""
    batch, head, block, step = (pl.program_id(axis) for axis in range(4))
    queries, keys, live = _blocks(tiles, by_queries, block, step, refs[0][batch])
    ends = step == 0, step == pl.num_programs(3) - 1
    return Tile(tiles, options, Place(batch, head, queries, keys, live, *ends), refs)


def _forward_kernel(tiles: Tiles, options: Options, *refs) -> None:
    tile = _tile(tiles, options, True, refs)
    accumulate(tile, *tile.refs)


def _query_kernel(tiles: Tiles, options: Options, *refs) -> None:
    tile = _tile(tiles, options, True, refs)
    *given, grad_query, total = tile.refs

    @pl.when(tile.place.is_first)
    def _begin():
        total[...] = jnp.zeros(total.shape)

    @tile.run
    def _add(masked):
        _, grad_scores = gradient(tile, masked, *given)
        key = tile.key[0, 0]
        total[...] += product(key, grad_scores.astype(key.dtype), 0, 0)

    @pl.when(tile.place.is_last)
    def _finish():
        store(grad_query, total[...].T)


def _key_kernel(tiles: Tiles, options: Options, *refs) -> None:
    tile = _tile(tiles, options, False, refs)
    *given, grad_key, grad_value, key_total, value_total = tile.refs

    @pl.when(tile.place.is_first)
    def _begin():
        key_total[...] = jnp.zeros(key_total.shape)
        value_total[...] = jnp.zeros(value_total.shape)

    @tile.run
    def _add(masked):
        weights, grad_scores = gradient(tile, masked, *given)
        query, grad = tile.query(), load(given[0])
        key_total[...] += product(grad_scores.astype(query.dtype), query, 1, 0)
        value_total[...] += product(weights.astype(grad.dtype), grad, 1, 0)

    @pl.when(tile.place.is_last)
    def _finish():
        store(grad_key, key_total[...])
        store(grad_value, value_total[...])
