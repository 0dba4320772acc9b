"""Disentangled attention by tiles that stay in a TPU core's memory.

The n queries and n keys of a tile are at 2n - 1 distances from each other, whose positions are two
adjacent blocks of the tables. The products of these positions with the queries, or with the keys,
[n, 2n], hold the scores of all pairs; each row starts one column farther left. Shifting the rows
puts every score in its place, and the reverse shift gives the gradient. There are no gathers or
scatters, and no S×S or S×2S array is ever written.
"""

import functools
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from llmjax.kernels import dropout, tuning
from llmjax.kernels.disentangled_attention.tables import Tables
from llmjax.kernels.flash_attention.tile_tpu import (
    Options,
    Place,
    Tile,
    accumulate,
    gradient,
    load,
    store,
)
from llmjax.kernels.flash_attention.tiles import Tiles
from llmjax.kernels.tiling import LANES, pad, product

BLOCK = 512  # maximum number of queries, and of keys, in a tile
SUBLANES = 8
MEMORY_BYTES = 60 * 2**20  # every chip has 64 MB or more


class Sizes(NamedTuple):
    """Sizes for `tuning`: the maximum number of queries, and of keys, in a tile."""

    block: int


def block(query: jax.Array) -> int:
    """The number of queries, and of keys, in a tile: the fewest tiles of equal size."""
    *_, length, channels = query.shape
    case = tuning.case(query.dtype, channels)
    most = tuning.sizes("disentangled_attention.pallas_tpu", case, Sizes(BLOCK)).block
    tiles = -(-length // most)
    return -(-length // (tiles * LANES)) * LANES


def padding(query: jax.Array) -> tuple[int, int]:
    """The padding before and after the tables of `by_distance` that makes whole blocks."""
    short = -query.shape[2] % block(query)
    return short, short + 1


@functools.partial(jax.custom_vjp, nondiff_argnums=(6,))
def attention(
    query, key, value, mask, draw: dropout.Draw, tables: Tables, options: Options
) -> jax.Array:
    """Computes `api.disentangled_attention` from tables of `by_distance` with `padding`."""
    return _forward(query, key, value, mask, draw, tables, options)[0]


def _forward(query, key, value, mask, draw, tables, options):
    inputs = _Inputs(query, key, value, mask, draw, tables)
    size = inputs.tiles.query_block
    out, log_sums = inputs.call(
        _forward_kernel,
        options,
        "queries",
        outs=("query", "per_query"),
        scratch=[(1, size), (1, size), (query.shape[3], size)],
        products=2 + 2 * len(inputs.terms),
    )
    residuals = (query, key, value, mask, draw, tables, out, log_sums)
    return out[:, :, 0, : query.shape[2]], residuals


def _backward(options, residuals, grad):
    query, key, value, mask, draw, tables, out, log_sums = residuals
    inputs = _Inputs(query, key, value, mask, draw, tables)
    grad = inputs.to_rows(grad)
    delta = inputs.per_query(jnp.sum(out.astype(jnp.float32) * grad, axis=-1))
    more = (("query", grad), ("per_query", log_sums), ("per_query", delta))
    found: dict[str, jax.Array] = {}
    for walk, wanted in _walks(inputs):
        outs = inputs.call(
            functools.partial(_backward_kernel, wanted),
            options,
            walk,
            more=more,
            outs=wanted,
            scratch=[inputs.results[name].scratch for name in wanted],
            products=2 + 2 * len(inputs.terms) + sum(inputs.results[n].products for n in wanted),
        )
        found |= dict(zip(wanted, outs, strict=True))
    length = query.shape[2]
    grad_key, grad_value = (found[name][:, :, :length] for name in ("key", "value"))
    windows = (found.get(name) for name in Tables._fields)
    grad_tables = Tables(*(None if x is None else _overlap(x) for x in windows))
    return found["query"][:, :, 0, :length], grad_key, grad_value, None, None, grad_tables


attention.defvjp(_forward, _backward)


def _walks(inputs: "_Inputs") -> list[tuple[str, tuple[str, ...]]]:
    """The orders in which to visit the tiles, and the gradients that each computes."""
    if inputs.tiles.query_blocks == 1:
        # All pairs of a head are in one tile, which a single walk visits once.
        return [("distances", ("query", "key", "value", *inputs.terms))]
    walks: list[tuple[str, tuple[str, ...]]] = [("queries", ("query",)), ("keys", ("key", "value"))]
    return [*walks, ("distances", inputs.terms)] if inputs.terms else walks


def _overlap(windows: jax.Array) -> jax.Array:
    """The sum [H, 2·N·n, C] of windows [H, 2·N - 1, C, 2·n] that are n apart."""
    heads, count, channels, width = windows.shape
    halves = jnp.swapaxes(windows, 2, 3).reshape(heads, count, 2, width // 2, channels)
    low, high = ([(0, 0), ends, (0, 0), (0, 0)] for ends in ((0, 1), (1, 0)))
    total = jnp.pad(halves[:, :, 0], low) + jnp.pad(halves[:, :, 1], high)
    return total.reshape(heads, -1, channels)


class _Result(NamedTuple):
    """A gradient that a kernel computes.

    Attributes:
        scratch: shape of its accumulator.
        products: number of matrix products of a tile's size that it takes.
    """

    scratch: tuple[int, int]
    products: int


class _Inputs:
    """The arrays in the kernels' layouts, padded to whole blocks, and how to run a kernel on them.

    "query" arrays are [B, H, 1, S, C], "key" and "value" arrays [B, H, S, C], tables [H, 2·S, C],
    and "per_query" arrays, with one number per query, [B, H, blocks, 1, n].
    """

    def __init__(self, query, key, value, mask, draw, tables) -> None:
        self.batch, self.heads, length, self.channels = query.shape
        size = block(query)
        segments = mask.segment_ids is not None
        self.tiles = Tiles(length, length, size, size, 1, mask.behind, mask.ahead, segments)
        self.dtype, self.varying = query.dtype, jax.typeof(query).manual_axis_type
        self.scalars = (jnp.zeros(self.batch, jnp.int32), *draw)
        self.arrays = [("query", self.to_rows(query))]
        self.arrays += [("key", pad(key, 2, size)), ("value", pad(value, 2, size))]
        if segments:
            ids = pad(mask.segment_ids[:, None], 2, size)
            self.arrays += [("query_segments", ids), ("key_segments", ids)]
        given = {name: x for name, x in tables._asdict().items() if x is not None}
        self.terms = tuple(given)
        for name, table in given.items():
            table = table.astype(self.dtype)
            self.arrays += [(f"{name}_low", table), (f"{name}_high", table)]
        tile, window = (size, self.channels), (self.channels, 2 * size)
        self.results = {
            "query": _Result(tile, 1 + 2 * ("c2p" in given)),
            "key": _Result(tile, 1 + 2 * ("p2c" in given)),
            "value": _Result(tile, 1),
            **{name: _Result(window, 2) for name in given},
        }

    def to_rows(self, x):
        """[B, H, S, C] to [B, H, 1, S, C], padded."""
        return pad(x[:, :, None], 3, self.tiles.query_block)

    def per_query(self, x):
        """[B, H, 1, S] to [B, H, blocks, 1, n]."""
        return x.reshape(*x.shape[:2], self.tiles.query_blocks, 1, self.tiles.query_block)

    def call(
        self, kernel: Callable, options: Options, walk: str, *, more=(), outs, scratch, products
    ) -> list[jax.Array]:
        """Runs a kernel on every tile, in the order of a walk."""
        blocks = self.tiles.query_blocks
        by_distance = walk == "distances"
        arrays = [*self.arrays, *more]
        operands = [array for _, array in arrays]
        spec = pltpu.PrefetchScalarGridSpec(
            num_scalar_prefetch=len(self.scalars),
            grid=(self.heads, 2 * blocks - 1, self.batch, blocks)
            if by_distance
            else (self.heads, self.batch, blocks, blocks),
            in_specs=[self._block(kind, walk) for kind, _ in arrays],
            out_specs=[self._block(kind, walk) for kind in outs],
            scratch_shapes=[pltpu.VMEM(shape, jnp.float32) for shape in scratch],
        )
        pairs = self.batch * self.heads * self.tiles.pairs
        run = pl.pallas_call(
            functools.partial(kernel, self.tiles, options, walk, self.terms),
            grid_spec=spec,
            out_shape=[self._shape(kind) for kind in outs],
            compiler_params=pltpu.CompilerParams(
                dimension_semantics=(
                    "parallel",
                    "parallel",
                    "arbitrary" if by_distance else "parallel",
                    "arbitrary",
                ),
                vmem_limit_bytes=MEMORY_BYTES,
            ),
            cost_estimate=pl.CostEstimate(
                flops=2 * products * pairs * self.channels,
                transcendentals=pairs,
                bytes_accessed=sum(x.size * x.dtype.itemsize for x in operands),
            ),
            interpret=options.interpret,
            name=f"disentangled_attention_by_{walk}",
        )
        return run(*self.scalars, *operands)

    def _block(self, kind: str, walk: str) -> pl.BlockSpec:
        blocks, size, channels = self.tiles.query_blocks, self.tiles.query_block, self.channels

        def index(head, x, y, z, *_):
            batch, queries, keys, _ = _where(walk, blocks, x, y, z)
            # The first block of c2p is for the last keys and first queries; p2c is the reverse.
            c2p, p2c = keys - queries + blocks - 1, queries - keys + blocks - 1
            return {
                "query": (batch, head, 0, queries, 0),
                "key": (batch, head, keys, 0),
                "value": (batch, head, keys, 0),
                "per_query": (batch, head, queries, 0, 0),
                "query_segments": (batch, 0, queries),
                "key_segments": (batch, 0, keys),
                "c2p_low": (head, c2p, 0),
                "c2p_high": (head, c2p + 1, 0),
                "p2c_low": (head, p2c, 0),
                "p2c_high": (head, p2c + 1, 0),
                "c2p": (head, c2p, 0, 0),
                "p2c": (head, p2c, 0, 0),
            }[kind]

        keys, window = (1, 1, size, channels), (1, 1, channels, 2 * size)
        shape = {
            "query": (1, 1, 1, size, channels),
            "key": keys,
            "value": keys,
            "per_query": (1, 1, 1, 1, size),
            "query_segments": (1, 1, size),
            "key_segments": (1, 1, size),
            "c2p": window,
            "p2c": window,
        }.get(kind, (1, size, channels))
        return pl.BlockSpec(shape, index)

    def _shape(self, kind: str) -> jax.ShapeDtypeStruct:
        blocks, size = self.tiles.query_blocks, self.tiles.query_block
        heads = (self.batch, self.heads)
        keys = ((*heads, blocks * size, self.channels), self.dtype)
        window = ((self.heads, 2 * blocks - 1, self.channels, 2 * size), jnp.float32)
        shape, dtype = {
            "query": ((*heads, 1, blocks * size, self.channels), self.dtype),
            "key": keys,
            "value": keys,
            "per_query": ((*heads, blocks, 1, size), jnp.float32),
            "c2p": window,
            "p2c": window,
        }[kind]
        return jax.ShapeDtypeStruct(shape, dtype, manual_axis_type=self.varying)


def _where(walk: str, blocks: int, x, y, z):
    """The row, block of queries and block of keys of a step, and whether the tile exists.

    All tiles whose queries are the same number of blocks ahead of their keys use the same
    positions: "distances" visits these together, over all rows. Steps after the last repeat it.
    """
    if walk == "queries":
        return x, y, z, True
    if walk == "keys":
        return x, z, y, True
    ahead = x - (blocks - 1)
    count = blocks - jnp.abs(ahead)
    step = jnp.minimum(z, count - 1)
    return y, step + jnp.maximum(ahead, 0), step + jnp.maximum(-ahead, 0), z < count


class _Tile(Tile):
    """A tile with content and position terms; each term reads two blocks of positions."""

    def __init__(self, tiles: Tiles, options: Options, walk: str, terms, refs) -> None:
        head, x, y, z = (pl.program_id(axis) for axis in range(4))
        batch, queries, keys, there = _where(walk, tiles.query_blocks, x, y, z)
        first, last = tiles.keys_of(queries, 0)
        live = there & (first <= keys) & (keys <= last)
        self._step, self._row = z, y
        place = Place(batch, head, queries, keys, live, z == 0, z == pl.num_programs(3) - 1)
        super().__init__(tiles, options, place, refs)
        count = 2 * len(terms)
        pairs = zip(self.refs[:count:2], self.refs[1:count:2], strict=True)
        self._positions = dict(zip(terms, pairs, strict=True))
        self.refs = self.refs[count:]

    def positions(self, term: str) -> jax.Array:
        """The tile's positions [2·n, C], in order of distance."""
        return jnp.concatenate([ref[0] for ref in self._positions[term]])

    def products(self) -> jax.Array:
        """The unscaled scores of content and positions, [keys, queries]."""
        scores = super().products()
        if "p2c" in self._positions:
            scores += _slide(product(self.key[0, 0], self.positions("p2c"), 1, 1))
        if "c2p" in self._positions:
            scores += _slide(product(self.query(), self.positions("c2p"), 1, 1)).T
        return scores

    def ends(self, result: str):
        """Whether the step is the first, and whether it is the last, that adds to a gradient."""
        first, last = self.place.is_first, self.place.is_last
        if result in self._positions:
            return first & (self._row == 0), last & (self._row == pl.num_programs(2) - 1)
        return first, last

    def gradients(self, wanted, weights, grad_scores, grad) -> dict[str, jax.Array]:
        """This tile's contribution to each gradient: keys, queries [n, C], positions [C, 2·n]."""
        query, key = self.query(), self.key[0, 0]
        by_query = grad_scores.T
        slid = {"c2p": by_query, "p2c": grad_scores}
        slid = {term: _unslide(slid[term]).astype(key.dtype) for term in self._positions}
        states = {"c2p": query, "p2c": key}
        parts = {term: product(states[term], slid[term], 0, 0) for term in slid if term in wanted}
        if "query" in wanted:
            parts["query"] = product(by_query.astype(key.dtype), key, 1, 0)
            if "c2p" in slid:
                parts["query"] += product(slid["c2p"], self.positions("c2p"), 1, 0)
        if "key" in wanted:
            parts["key"] = product(grad_scores.astype(query.dtype), query, 1, 0)
            if "p2c" in slid:
                parts["key"] += product(slid["p2c"], self.positions("p2c"), 1, 0)
        if "value" in wanted:
            parts["value"] = product(weights.astype(grad.dtype), grad, 1, 0)
        return parts


def _forward_kernel(tiles: Tiles, options: Options, walk: str, terms, *refs) -> None:
    tile = _Tile(tiles, options, walk, terms, refs)
    accumulate(tile, *tile.refs)


def _backward_kernel(wanted, tiles: Tiles, options: Options, walk: str, terms, *refs) -> None:
    tile = _Tile(tiles, options, walk, terms, refs)
    grad, log_sums, delta, *rest = tile.refs
    outs, totals = rest[: len(wanted)], rest[len(wanted) :]
    ends = [tile.ends(name) for name in wanted]
    for total, (first, _) in zip(totals, ends, strict=True):

        @pl.when(first)
        def _begin(total=total):
            total[...] = jnp.zeros(total.shape)

    @tile.run
    def _add(masked):
        weights, grad_scores = gradient(tile, masked, grad, log_sums, delta)
        parts = tile.gradients(wanted, weights, grad_scores, load(grad))
        for name, total in zip(wanted, totals, strict=True):
            total[...] += parts[name]

    for out, total, (_, last) in zip(outs, totals, ends, strict=True):

        @pl.when(last)
        def _finish(out=out, total=total):
            store(out, total[...])


def _slide(x: jax.Array) -> jax.Array:
    """[n, 2·n] to [n, n]: row i of the result starts at column n - 1 - i."""
    size = x.shape[0]
    return pltpu.roll(x, size + 1, 1, stride=1, stride_axis=0)[:, :size]


def _unslide(x: jax.Array) -> jax.Array:
    """[n, n] to [n, 2·n]: row i of the result is row i of x from column n - 1 - i on, else zeros.

    A strided roll can only increase from row to row, and here it must decrease. So groups of
    sublanes are rolled as a whole, and rows within a group by the bits of the remaining distance.
    """
    size = x.shape[0]
    wide = jnp.concatenate([x, jnp.zeros_like(x)], axis=1)
    groups = wide.reshape(size // SUBLANES, SUBLANES, 2 * size)
    groups = pltpu.roll(groups, size - SUBLANES, 2, stride=2 * size - SUBLANES, stride_axis=0)
    wide = groups.reshape(size, 2 * size)
    row = jax.lax.broadcasted_iota(jnp.int32, (size, 1), 0)
    for bit in (1, 2, 4):
        wide = jnp.where(row & bit, wide, pltpu.roll(wide, bit, 1))
    return wide
