"""Attention by tiles on a GPU's tensor cores, in Triton (FlashAttention-2, Dao 2023).

For the forward pass and the queries' gradient, a program takes a block of queries and loops over
the blocks of keys that the mask allows; for the keys' and values' gradients it takes a block of
keys and loops over the queries of all heads that share it. Arrays are read in place: nothing is
padded, and no keys are repeated.

Few queries, as in decoding, would leave most of a GPU idle. The heads that share a key head are
then rows of one tile, and the keys are split over programs, whose results are combined by their
log-sum-exps (Flash-Decoding, Dao et al. 2023).
"""

import functools

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton as plgpu

from llmjax.kernels import dropout
from llmjax.kernels.flash_attention import gpu_schedule
from llmjax.kernels.flash_attention.gpu_schedule import Blocks
from llmjax.kernels.flash_attention.tile_gpu import (
    LOG2E,
    Arrays,
    Program,
    channels,
    load,
    store,
)
from llmjax.kernels.flash_attention.tiles import Gradients, Options, Result, Tiles
from llmjax.kernels.tiling import LOWEST, product


def forward(query, key, value, mask, draw: dropout.Draw, options: Options) -> Result:
    """See `attend.Implementation`."""
    arrays = _arrays(query, key, value, mask, draw, options)
    batch, heads, length, width = query.shape
    groups = heads // key.shape[1]
    schedule = gpu_schedule.choose(width, query.dtype)
    blocks, packed, splits = schedule.forward, 1, 1
    if length * groups <= blocks.queries:
        packed = groups
        rows = max(schedule.few.queries, pl.next_power_of_2(length * groups))
        blocks = (schedule.few if rows < blocks.queries else blocks)._replace(queries=rows)
        splits = max(1, schedule.programs // (batch * key.shape[1]))
    tiles = _tiles(query, key, mask, blocks, packed)
    splits = min(splits, tiles.key_blocks)
    out, log_sums = _call(
        functools.partial(_forward_kernel, tiles, options, splits),
        arrays,
        blocks,
        heads=packed,
        grid=(tiles.query_blocks, splits),
        outs=(
            ("split", (splits, *query.shape), jnp.float32 if splits > 1 else query.dtype),
            ("split", (splits, *query.shape[:3]), jnp.float32),
        ),
        options=options,
    )
    out, log_sums = _add_up(out, log_sums)
    return out.astype(query.dtype), jnp.where(log_sums == jnp.inf, -jnp.inf, log_sums)


def backward(query, key, value, mask, draw, result: Result, grads: Result, options) -> Gradients:
    """See `attend.Implementation`."""
    (out, log_sums), (grad, grad_sum) = result, grads
    log_sums = jnp.where(log_sums == -jnp.inf, jnp.inf, log_sums)
    # As in `xla`, the cotangent of the log-sum-exp joins delta.
    delta = jnp.sum(out.astype(jnp.float32) * grad, axis=-1) - grad_sum
    arrays = _arrays(query, key, value, mask, draw, options)
    arrays = arrays._replace(grad=grad, log_sums=log_sums, delta=delta)
    groups = query.shape[1] // key.shape[1]
    schedule = gpu_schedule.choose(query.shape[-1], query.dtype)
    tiles = _tiles(query, key, mask, schedule.query)
    (grad_query,) = _call(
        functools.partial(_query_kernel, tiles, options),
        arrays,
        schedule.query,
        heads=1,
        grid=(tiles.query_blocks, 1),
        outs=(("query", query.shape, query.dtype),),
        options=options,
    )
    tiles = _tiles(query, key, mask, schedule.key)
    grad_key, grad_value = _call(
        functools.partial(_key_kernel, tiles, options),
        arrays,
        schedule.key,
        heads=groups,
        grid=(tiles.key_blocks, 1),
        outs=(("key", key.shape, key.dtype), ("key", value.shape, value.dtype)),
        options=options,
    )
    return grad_query, grad_key, grad_value


def _arrays(query, key, value, mask, draw, options: Options) -> Arrays:
    seeds = heads = None
    if options.rate:
        batch, query_heads = query.shape[:2]
        group = jnp.arange(query_heads // key.shape[1], dtype=jnp.int32)
        seeds, heads = draw.seeds, (draw.heads[..., None] + group).reshape(batch, query_heads)
    segments = mask.segment_ids, mask.key_segments
    return Arrays(query, key, value, *segments, mask.offset, seeds, heads)


def _tiles(query, key, mask, blocks: Blocks, packed: int = 1) -> Tiles:
    """The tiles of these blocks, with `packed` heads in a tile."""
    return Tiles(
        queries=query.shape[2],
        keys=key.shape[2],
        query_block=blocks.queries // packed,
        key_block=blocks.keys,
        groups=packed,
        behind=mask.behind,
        ahead=mask.ahead,
        segments=mask.segment_ids is not None,
    )


def _call(kernel, arrays: Arrays, blocks: Blocks, *, heads, grid, outs, options: Options):
    """Runs a kernel on a grid of blocks and splits; each program gets `heads` query heads."""
    batch, query_heads = arrays.query.shape[:2]
    groups = query_heads // arrays.key.shape[1]
    axes = {
        "query": ("batch", "heads"),
        "key": ("batch", "kv_head"),
        "split": ("split", "batch", "heads"),
        "row": ("batch",),
        "all": (),
    }

    def spec(kind, shape):
        def index(block, split, head, row):
            places = {"split": split, "batch": row, "heads": head}
            places["kv_head"] = head * heads // groups
            found = [places[axis] for axis in axes[kind]]
            return (*found, *(0,) * (len(shape) - len(found)))

        block = [heads if axis == "heads" else None for axis in axes[kind]]
        return pl.BlockSpec((*block, *shape[len(block) :]), index)

    kinds = Arrays(
        *("query", "key", "key", "row", "row", "row", "all", "query", "query", "query", "query")
    )
    specs = Arrays(
        *(
            None if array is None else spec(kind, array.shape)
            for kind, array in zip(kinds, arrays, strict=True)
        )
    )
    varying = jax.typeof(arrays.query).manual_axis_type
    return pl.pallas_call(
        kernel,
        grid=(*grid, query_heads // heads, batch),
        in_specs=[specs],
        out_specs=[spec(kind, shape) for kind, shape, _ in outs],
        out_shape=[
            jax.ShapeDtypeStruct(shape, dtype, manual_axis_type=varying) for _, shape, dtype in outs
        ],
        compiler_params=plgpu.CompilerParams(num_warps=blocks.warps, num_stages=blocks.stages),
        interpret=options.interpret,
        name=f"flash_attention{kernel.func.__name__}",
    )(arrays)


def _add_up(outs, log_sums) -> tuple[jax.Array, jax.Array]:
    """Combines attention over splits of the keys into attention over all of them."""
    if len(outs) == 1:
        return outs[0], log_sums[0]
    seen = log_sums < jnp.inf
    highest = jnp.max(jnp.where(seen, log_sums, LOWEST), axis=0)
    shares = jnp.where(seen, jnp.exp(log_sums - highest), 0.0)
    total = jnp.sum(shares, axis=0)
    divisor = jnp.where(total > 0, total, 1.0)
    out = jnp.sum(outs * shares[..., None], axis=0) / divisor[..., None]
    return out, jnp.where(total > 0, highest + jnp.log(divisor), jnp.inf)


def _forward_kernel(tiles: Tiles, options: Options, splits: int, arrays, out, log_sums) -> None:
    program = Program(tiles, options, arrays, True)
    block = _longest_first(tiles)
    queries = program.queries(block)
    query = load(arrays.query, queries)

    def attend(block, carry, masked):
        highest, total, mixed = carry
        keys = program.keys(block, not masked)
        scores, _ = program.scores(query, load(arrays.key, keys), queries, keys, masked)
        peak = jnp.maximum(highest, jnp.max(scores, axis=1))
        # Until a row has seen a key, its weights must be exp2(LOWEST - 0) = 0.
        base = jnp.where(peak == LOWEST, 0.0, peak) if masked else peak
        weights = jnp.exp2(scores - base[:, None])
        shrink = jnp.exp2(highest - base)
        total = total * shrink + jnp.sum(weights, axis=1)
        (dropped,) = program.drop(queries, keys, weights)
        value = load(arrays.value, keys)
        mixed = mixed * shrink[:, None] + product(dropped.astype(value.dtype), value, 1, 0)
        return peak, total, mixed

    first, last = tiles.keys_of(block, program.offset)
    share = (last - first + splits) // splits
    first += pl.program_id(1) * share
    rows = len(queries.numbers)
    begin = jnp.full(rows, LOWEST), jnp.zeros(rows), jnp.zeros((rows, channels(arrays.query)))
    highest, total, mixed = program.over(
        (first, jnp.minimum(first + share, last + 1)),
        tiles.whole_keys_of(block, program.offset),
        attend,
        begin,
    )
    seen = total > 0
    divisor = jnp.where(seen, total, 1.0)
    store(out, queries, mixed / divisor[:, None])
    # A row that sees no key gets +inf, which gives weights of 0 in the backward pass.
    store(log_sums, queries, jnp.where(seen, highest / LOG2E + jnp.log(divisor), jnp.inf))


def _query_kernel(tiles: Tiles, options: Options, arrays, grad_query) -> None:
    program = Program(tiles, options, arrays, True)
    block = _longest_first(tiles)
    queries = program.queries(block)
    rows = program.rows(queries)

    def add(block, total, masked):
        keys = program.keys(block, not masked)
        key, value = load(arrays.key, keys), load(arrays.value, keys)
        _, grad_scores = program.gradient(rows, key, value, queries, keys, masked)
        return total + product(grad_scores, key, 1, 0)

    first, last = tiles.keys_of(block, program.offset)
    total = program.over(
        (first, last + 1),
        tiles.whole_keys_of(block, program.offset),
        add,
        jnp.zeros(rows.query.shape, jnp.float32),
    )
    store(grad_query, queries, total * options.scale)


def _key_kernel(tiles: Tiles, options: Options, arrays, grad_key, grad_value) -> None:
    program = Program(tiles, options, arrays, False)
    block = pl.program_id(0)
    keys = program.keys(block)
    key, value = load(arrays.key, keys), load(arrays.value, keys)
    first, last = tiles.queries_of(block, program.offset)
    whole = tiles.whole_queries_of(block, program.offset)

    def add_head(head, totals):
        def add(block, totals, masked):
            queries = program.queries(block, head)
            rows = program.rows(queries)
            weights, grad_scores = program.gradient(rows, key, value, queries, keys, masked)
            key_total, value_total = totals
            key_total += product(grad_scores, rows.query, 1, 0)
            return key_total, value_total + product(weights, rows.grad, 1, 0)

        return program.over((first, last + 1), whole, add, totals)

    begin = (jnp.zeros(key.shape, jnp.float32),) * 2
    heads = arrays.query.shape[0]
    key_total, value_total = jax.lax.fori_loop(0, heads, add_head, begin)
    store(grad_key, keys, key_total * options.scale)
    store(grad_value, keys, value_total)


def _longest_first(tiles: Tiles):
    """This program's block of queries; for causal masks the last blocks, the longest, run first."""
    block = pl.program_id(0)
    return tiles.query_blocks - 1 - block if tiles.ahead == 0 else block
