"""Disentangled attention by tiles on a GPU's tensor cores, in Triton.

For the forward pass and the queries' gradient, a program takes a block of queries and loops over
the blocks of keys that the mask allows. For the keys' and values' gradients it takes a block of
keys and loops over queries. For the tables' gradients it takes a diagonal of tiles, which all use
the same positions, and loops over it in all rows. Scores by distance are shifted through a slab of
memory that belongs to the program (see `tile_gpu`).

There are only about as many programs as a GPU runs at once. Each processes one block after another
with the same slab, which therefore stays in the cache, and the size of the slabs depends neither on
the number of rows nor on their length. No S×S or S×2S array is ever written, no two programs add to
the same number, and results are deterministic.
"""

import functools

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton as plgpu

from llmjax.kernels import dropout
from llmjax.kernels.disentangled_attention.tables import Tables
from llmjax.kernels.disentangled_attention.tile_gpu import Kernel, Refs, Tile, View
from llmjax.kernels.flash_attention.tile_gpu import LOG2E, Arrays, Part, channels, load, store
from llmjax.kernels.flash_attention.tiles import Options, Tiles
from llmjax.kernels.tiling import LOWEST, divide, product

# For heads of 64 channels, as in DeBERTa: wider ones compile, but spill registers to memory.
BLOCK = 64  # queries, and keys, of a tile; half for float32, whose products take more registers
WARPS = 8  # of a program
PROGRAMS = 2 * 132  # at most two per multiprocessor of an H100


def block(query: jax.Array) -> int:
    """The number of queries, and of keys, in a tile."""
    return BLOCK if query.dtype.itemsize < 4 else BLOCK // 2


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
    inputs = _Inputs(query, key, value, mask, draw, tables, options)
    rows, length = inputs.rows, query.shape[2]
    out, log_sums = inputs.call(
        _forward_kernel,
        items=rows * inputs.tiles.query_blocks,
        outs=[(inputs.arrays.query.shape, query.dtype), ((rows, 1, length), jnp.float32)],
    )
    out = out.reshape(query.shape)
    return out, (query, key, value, mask, draw, tables, out, log_sums)


def _backward(options, residuals, grad):
    query, key, value, mask, draw, tables, out, log_sums = residuals
    delta = jnp.sum(out.astype(jnp.float32) * grad, axis=-1).reshape(log_sums.shape)
    inputs = _Inputs(query, key, value, mask, draw, tables, options)
    grad = grad.reshape(inputs.arrays.query.shape)
    inputs.arrays = inputs.arrays._replace(grad=grad, log_sums=log_sums, delta=delta)
    rows, heads = inputs.rows, query.shape[1]
    (grad_query,) = inputs.call(
        _query_kernel,
        items=rows * inputs.tiles.query_blocks,
        outs=[(grad.shape, query.dtype)],
    )
    key_shape = inputs.arrays.key.shape
    grad_key, grad_value = inputs.call(
        _key_kernel,
        items=rows * inputs.tiles.key_blocks,
        outs=[(key_shape, key.dtype), (key_shape, value.dtype)],
    )
    found: dict[str, jax.Array] = {}
    if inputs.terms:
        size, count = inputs.tiles.query_block, 2 * inputs.tiles.query_blocks - 1
        # With few heads and distances most of a GPU would be idle, so programs split the rows.
        parts = min(rows // heads, pl.cdiv(2 * PROGRAMS, heads * count))
        shape = (parts, heads, count, 2 * size, query.shape[3])
        windows = inputs.call(
            functools.partial(_distance_kernel, parts),
            items=parts * heads * count,
            outs=[(shape, jnp.float32)] * len(inputs.terms),
        )
        found = dict(zip(inputs.terms, map(_overlap, windows), strict=True))
    grads = (x.reshape(query.shape) for x in (grad_query, grad_key, grad_value))
    return *grads, None, None, Tables(*(found.get(term) for term in Tables._fields))


attention.defvjp(_forward, _backward)


def _overlap(windows: jax.Array) -> jax.Array:
    """The sum [H, 2·N·n, C] of windows [parts, H, 2·N - 1, 2·n, C] that are n apart."""
    total = jnp.sum(windows, axis=0)
    heads, count, width, size = total.shape
    halves = total.reshape(heads, count, 2, width // 2, size)
    low, high = ([(0, 0), ends, (0, 0), (0, 0)] for ends in ((0, 1), (1, 0)))
    total = jnp.pad(halves[:, :, 0], low) + jnp.pad(halves[:, :, 1], high)
    return total.reshape(heads, -1, size)


class _Inputs:
    """The arrays in the kernels' layouts, and how to run a kernel on them."""

    def __init__(self, query, key, value, mask, draw, tables, options: Options) -> None:
        batch, heads, length, width = query.shape
        size = block(query)
        segments = mask.segment_ids is not None
        self.tiles = Tiles(length, length, size, size, 1, mask.behind, mask.ahead, segments)
        self.options, self.heads, self.rows = options, heads, batch * heads
        self.varying = jax.typeof(query).manual_axis_type
        self.arrays = Arrays(
            query.reshape(self.rows, 1, length, width),
            key.reshape(self.rows, length, width),
            value.reshape(self.rows, length, width),
            mask.segment_ids,
            mask.segment_ids,
            None,
            draw.seeds if options.rate else None,
            draw.heads.reshape(self.rows) if options.rate else None,
        )
        self.terms = tuple(name for name, x in tables._asdict().items() if x is not None)
        self.tables = Tables(*(None if x is None else x.astype(query.dtype) for x in tables))

    def call(self, kernel, *, items: int, outs) -> list[jax.Array]:
        """Runs a kernel that computes `items` results, each for one block."""
        programs, size = min(items, PROGRAMS), self.tiles.query_block
        slabs = ((programs, max(1, len(self.terms)), size, 2 * size), self.arrays.query.dtype)
        static = Kernel(self.tiles, self.options, self.terms, self.heads, items)

        def run(arrays, tables, *rest):
            *outs, slabs = rest
            slab = View(slabs, pl.program_id(0))
            kernel(static, Refs(arrays, tables, slab), *outs)

        name = getattr(kernel, "func", kernel).__name__
        *found, _ = pl.pallas_call(
            run,
            grid=(programs,),
            out_shape=[
                jax.ShapeDtypeStruct(shape, dtype, manual_axis_type=self.varying)
                for shape, dtype in (*outs, slabs)
            ],
            compiler_params=plgpu.CompilerParams(num_warps=WARPS, num_stages=1),
            interpret=self.options.interpret,
            name=f"disentangled_attention{name}",
        )(self.arrays, self.tables)
        return found


def _each(items: int, body) -> None:
    """Runs `body(item)` for this program's share of the items."""
    program, programs = pl.program_id(0), min(items, PROGRAMS)
    count, _ = divide(items - program + programs - 1, programs)
    jax.lax.fori_loop(0, count, lambda i, _: body(program + i * programs), None)


def _forward_kernel(kernel: Kernel, refs: Refs, out, log_sums) -> None:
    tiles = kernel.tiles

    def attend_of(item):
        row, block = divide(item, tiles.query_blocks)
        program = Tile(kernel, refs, row)
        queries = program.queries(block)
        query = load(program.arrays.query, queries)

        def attend(key_block, carry, masked):
            highest, total, mixed = carry
            tile, keys = program.ahead(block - key_block), program.keys(key_block, not masked)
            key = load(tile.arrays.key, keys)
            scores, _ = tile.scores(query, key, queries, keys, masked)
            peak = jnp.maximum(highest, jnp.max(scores, axis=1))
            # Until a row has seen a key, its weights must be exp2(LOWEST - 0) = 0.
            base = jnp.where(peak == LOWEST, 0.0, peak) if masked else peak
            weights = jnp.exp2(scores - base[:, None])
            shrink = jnp.exp2(highest - base)
            total = total * shrink + jnp.sum(weights, axis=1)
            (dropped,) = tile.drop(queries, keys, weights)
            value = load(tile.arrays.value, keys)
            mixed = mixed * shrink[:, None] + product(dropped.astype(value.dtype), value, 1, 0)
            return peak, total, mixed

        rows = tiles.query_block
        begin = jnp.full(rows, LOWEST), jnp.zeros(rows), jnp.zeros((rows, channels(out)))
        highest, total, mixed = program.over_keys(block, attend, begin)
        seen = total > 0
        divisor = jnp.where(seen, total, 1.0)
        store(View(out, row), queries, mixed / divisor[:, None])
        # A row that sees no key gets +inf, which gives weights of 0 in the backward pass.
        log_sum = jnp.where(seen, highest / LOG2E + jnp.log(divisor), jnp.inf)
        store(View(log_sums, row), queries, log_sum)

    _each(kernel.items, attend_of)


def _query_kernel(kernel: Kernel, refs: Refs, grad_query) -> None:
    def add_up(item):
        row, block = divide(item, kernel.tiles.query_blocks)
        program = Tile(kernel, refs, row)
        queries = program.queries(block)
        rows = program.rows(queries)

        def add(key_block, total, masked):
            tile, keys = program.ahead(block - key_block), program.keys(key_block, not masked)
            key, value = load(tile.arrays.key, keys), load(tile.arrays.value, keys)
            _, grad_scores = tile.gradient(rows, key, value, queries, keys, masked)
            total += product(grad_scores, key, 1, 0)
            for term, slid in tile.unslide(grad_scores, "c2p").items():
                total += product(slid, tile.positions(term), 1, 0)
            return total

        total = program.over_keys(block, add, jnp.zeros(rows.query.shape, jnp.float32))
        store(View(grad_query, row), queries, total * kernel.options.scale)

    _each(kernel.items, add_up)


def _key_kernel(kernel: Kernel, refs: Refs, grad_key, grad_value) -> None:
    tiles = kernel.tiles

    def add_up(item):
        row, block = divide(item, tiles.key_blocks)
        program = Tile(kernel, refs, row)
        keys = program.keys(block)
        key, value = load(program.arrays.key, keys), load(program.arrays.value, keys)

        def add(query_block, totals, masked):
            tile, queries = program.ahead(query_block - block), program.queries(query_block)
            rows = tile.rows(queries)
            weights, grad_scores = tile.gradient(rows, key, value, queries, keys, masked)
            key_total, value_total = totals
            key_total += product(grad_scores, rows.query, 0, 0)
            value_total += product(weights, rows.grad, 0, 0)
            for term, slid in tile.unslide(grad_scores, "p2c").items():
                key_total += product(slid, tile.positions(term), 1, 0)
            return key_total, value_total

        first, last = tiles.queries_of(block, 0)
        whole = tiles.whole_queries_of(block, 0)
        begin = (jnp.zeros(key.shape, jnp.float32),) * 2
        key_total, value_total = program.over((first, last + 1), whole, add, begin)
        store(View(grad_key, row), keys, key_total * kernel.options.scale)
        store(View(grad_value, row), keys, value_total)

    _each(kernel.items, add_up)


def _distance_kernel(parts: int, kernel: Kernel, refs: Refs, *grad_tables) -> None:
    """The tables' gradients: one item per number of blocks that queries are ahead of keys.

    All such tiles use the same positions; an item covers them in all rows, or in part of the rows.
    """
    tiles, heads = kernel.tiles, kernel.heads
    batch = refs.arrays.key.shape[0] // heads

    def add_up(item):
        # Longest diagonals first: 0 blocks ahead, then 1 ahead, 1 behind, and so on.
        step, rest = divide(item, heads * parts)
        head, part = divide(rest, parts)
        ahead, behind = divide(step + 1, 2)
        ahead = jnp.where(behind == 1, -ahead, ahead)
        start = jnp.maximum(ahead, 0), jnp.maximum(-ahead, 0)
        along = tiles.query_blocks - jnp.abs(ahead)
        first, last = tiles.keys_of(start[0], 0)
        live = (first <= start[1]) & (start[1] <= last)

        def add(i, totals):
            row, step = divide(i, along)
            tile = Tile(kernel, refs, row * heads + head).ahead(ahead)
            queries, keys = tile.queries(start[0] + step), tile.keys(start[1] + step)
            rows = tile.rows(queries)
            key, value = load(tile.arrays.key, keys), load(tile.arrays.value, keys)
            _, grad_scores = tile.gradient(rows, key, value, queries, keys, True)
            states = {"c2p": rows.query, "p2c": key}
            slid = tile.unslide(grad_scores, *kernel.terms)
            return tuple(
                total + product(slid[term], states[term], 0, 0)
                for term, total in zip(kernel.terms, totals, strict=True)
            )

        share, _ = divide(along * batch + parts - 1, parts)
        stop = jnp.where(live, jnp.minimum((part + 1) * share, along * batch), 0)
        width, size = channels(grad_tables[0]), tiles.query_block
        begin = (jnp.zeros((2 * size, width), jnp.float32),) * len(grad_tables)
        totals = jax.lax.fori_loop(part * share, stop, add, begin)
        window = Part(None, jnp.arange(2 * size, dtype=jnp.int32), None, None)
        place = Tile(kernel, refs, head).ahead(ahead)
        for term, total, grad in zip(kernel.terms, totals, grad_tables, strict=True):
            store(View(grad, part, head, place.window(term)), window, total * kernel.options.scale)

    _each(kernel.items, add_up)
