"""Statistics of logits, and gradients, by tiles in the registers of a GPU, with Triton.

The forward pass folds every tile of logits into running statistics and writes none. Programs split
the vocabulary as well as the tokens, so that even few tokens keep all multiprocessors busy.

In the backward pass, a program would need an accumulator as wide as the hidden states, which does
not fit in registers. A kernel therefore recomputes the logits for one chunk of the vocabulary, and
writes their gradient, [N, C], in the precision of the hidden states; XLA computes both products
with it. A chunk of the vocabulary completes its rows of the weight's gradient, so only the gradient
of the hidden states is summed over chunks, in float32. Chunks of tokens would instead sum that of
the weight: 2 GB for 4,096 channels and a vocabulary of 128,256, read and written for every chunk.

This takes four matrix products of 2·N·D·V operations where the chunks of `xla` take three. Besides,
the gradient of the logits is written once and read twice (6·N·V bytes in bfloat16), and the sum of
the hidden states' gradient is read and written for every chunk (8·N·D·V/C bytes): with N = 8,192,
D = 4,096, V = 128,256 and C = 8,192 some 11 GB, or 3 ms on an H100, whose tensor cores need 35 ms
for the products at their peak. Memory holds that sum, a chunk, and its rows of the weight and of
its gradient: 4·N·D + 2·N·C + 4·C·D bytes.
"""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton as plgpu

from llmjax.kernels import tuning
from llmjax.kernels.cap import bend
from llmjax.kernels.linear_cross_entropy.statistics import (
    Options,
    Statistics,
    combine,
    differentiated,
    instantiated,
    primals,
    slopes,
)
from llmjax.kernels.linear_cross_entropy.tile import Tile, start
from llmjax.kernels.tiling import divide, pad, product

CHUNK = 8192  # maximum vocabulary entries whose gradient is in memory
GROUP = 8  # tiles of the vocabulary that concurrent programs share, to hit the cache
SPLITS = 16  # maximum splits of the vocabulary; more if there are few tokens
PROCESSORS = 132  # multiprocessors of an H100
SMALLEST = 16  # minimum side of a tile, for the tensor cores


class Blocks(NamedTuple):
    """The sides of a tile, powers of two, and launch parameters; the defaults are for an H100."""

    tokens: int = 128
    vocab: int = 256
    width: int = 64  # of the parts in which the channels are multiplied
    num_warps: int = 8
    num_stages: int = 3


# By the bytes of an element.
BLOCKS = {2: Blocks(), 4: Blocks(tokens=64, vocab=64, width=32, num_warps=4)}


class _Arrays(NamedTuple):
    """Inputs of a kernel, in whole blocks; within a kernel, references."""

    targets: Any  # int32 [N]
    hidden: Any  # [N, D]
    weight: Any  # [V, D]; V is at least one block, not necessarily a multiple
    bias: Any  # [V] or None
    slopes: Any  # [.., N] or None: log-sum-exps, then the fields of `Slopes` that are not None


class _Sizes(NamedTuple):
    vocab: int  # V, without padding
    blocks: Blocks


@functools.partial(jax.custom_vjp, nondiff_argnums=(4,))
def statistics(hidden, weight, bias, targets, options: Options) -> Statistics:
    """Statistics of the tokens' logits, each [N].

    Args:
        hidden: [N, D].
        weight: [V, D].
        bias: [V] or None.
        targets: int32 [N]; those outside of [0, V) have a logit of 0.
        options: the statistics to compute, and static options.
    """
    return _statistics(hidden, weight, bias, targets, options)


def _forward(hidden, weight, bias, targets, options):
    trained = differentiated(weight, bias)
    hidden, weight, bias, targets = primals((hidden, weight, bias, targets))
    found = _statistics(hidden, weight, bias, targets, options)
    return found, (hidden, weight, bias, targets, found, trained)


def _statistics(hidden, weight, bias, targets, options):
    sizes, arrays = _arrays(hidden, weight, bias, targets)
    length = arrays.hidden.shape[0]
    rows, tiles = length // sizes.blocks.tokens, pl.cdiv(sizes.vocab, sizes.blocks.vocab)
    run = _run(rows, tiles)
    splits = pl.cdiv(tiles, run)
    # Splits come first, so that concurrent programs share hidden states and parts of the weight.
    parts = _call(
        functools.partial(_statistics_kernel, run),
        (splits, rows),
        sizes,
        options,
        arrays,
        out=((splits, options.wanted.rows, length), jnp.float32),
    )
    found = combine(options.wanted.statistics(jnp.moveaxis(parts, 1, 0)))
    return jax.tree.map(lambda x: x[: len(targets)], found)


def _backward(options, residuals, cotangents):
    hidden, weight, bias, targets, found, trained = residuals
    rows = [found.log_sum, *jax.tree.leaves(slopes(found, instantiated(cotangents)))]
    sizes, arrays = _arrays(hidden, weight, bias, targets, jnp.stack(rows))
    grid, width, places = _chunks(sizes, arrays)
    out = (arrays.hidden.shape[0], width), hidden.dtype

    def add(grads, place):
        # The gradient of a chunk of logits, [N, C].
        grad = _call(_gradient_kernel, grid, sizes, options, arrays, place, out=out)
        grad_hidden, grad_weight, grad_bias = grads
        rows = jax.lax.dynamic_slice_in_dim(arrays.weight, place[0], width)
        grad_hidden += product(grad, rows, 1, 0)

        def finish(whole, part):
            return jax.lax.dynamic_update_slice_in_dim(whole, part.astype(whole.dtype), place[0], 0)

        if trained.weight:
            grad_weight = finish(grad_weight, product(grad, arrays.hidden, 0, 0))
        if trained.bias:
            grad_bias = finish(grad_bias, jnp.sum(grad, 0, jnp.float32))
        return (grad_hidden, grad_weight, grad_bias), None

    zeros = (
        jnp.zeros_like(arrays.hidden, jnp.float32),
        jnp.zeros_like(arrays.weight, weight.dtype) if trained.weight else None,
        jnp.zeros_like(arrays.bias) if trained.bias else None,
    )
    (grad_hidden, grad_weight, grad_bias), _ = jax.lax.scan(add, zeros, places)
    tokens, channels = hidden.shape
    return (
        grad_hidden[:tokens, :channels].astype(hidden.dtype),
        None if grad_weight is None else grad_weight[: sizes.vocab, :channels],
        None if grad_bias is None else grad_bias[: sizes.vocab],
        None,
    )


statistics.defvjp(_forward, _backward, symbolic_zeros=True)


def _arrays(hidden, weight, bias, targets, rows=None) -> tuple[_Sizes, _Arrays]:
    """Pads the arrays to whole blocks, which copies hidden states if tokens do not divide evenly.

    The weight is copied only if it is smaller than a block, or if its channels are not a multiple
    of a block's, which models avoid.
    """
    case, vocab = tuning.case(hidden.dtype, hidden.shape[1]), weight.shape[0]
    usual = BLOCKS[hidden.dtype.itemsize]
    blocks = tuning.sizes("linear_cross_entropy.pallas_gpu", case, usual)
    blocks = blocks._replace(
        tokens=_side(blocks.tokens, len(targets)),
        vocab=_side(blocks.vocab, vocab),
        width=_side(blocks.width, hidden.shape[1]),
    )

    def wide(x):
        return pad(x, 1, blocks.width)

    def high(x):
        return pad(x, 0, blocks.vocab) if vocab < blocks.vocab else x

    return _Sizes(vocab, blocks), _Arrays(
        pad(targets, 0, blocks.tokens, -1),
        pad(wide(hidden), 0, blocks.tokens),
        high(wide(weight.astype(hidden.dtype))),
        None if bias is None else high(bias),
        None if rows is None else pad(rows, 1, blocks.tokens),
    )


def _side(limit: int, length: int) -> int:
    """The side of a tile: the limit, or the next power of two if the length is shorter."""
    return min(limit, max(SMALLEST, pl.next_power_of_2(length)))


def _run(rows: int, tiles: int) -> int:
    """The number of vocabulary tiles per program that minimizes the time until all finish.

    It assumes one program per multiprocessor. There are few splits, because concurrent splits read
    different parts of the weight, which must stay in the cache until the next rows need them.
    """
    most = max(SPLITS, pl.cdiv(PROCESSORS, rows))
    runs = [pl.cdiv(tiles, splits) for splits in range(1, most + 1)]
    return min(runs, key=lambda run: (pl.cdiv(rows * pl.cdiv(tiles, run), PROCESSORS) * run, -run))


def _chunks(sizes: _Sizes, arrays: _Arrays) -> tuple[tuple[int], int, jax.Array]:
    """How the backward pass splits the vocabulary: grid, length of a chunk, and int32 [chunks, 2].

    All chunks have the same length, in whole blocks. So that it ends with the vocabulary, the last
    chunk overlaps the one before and ignores the overlap: it starts at its first number and counts
    from its second. It is computed first, so that the rows of the weight's gradient that it ignores
    are overwritten later.
    """
    blocks, vocab = sizes.blocks, arrays.weight.shape[0]
    count = pl.cdiv(vocab, CHUNK)
    while (width := pl.cdiv(pl.cdiv(vocab, count), blocks.vocab) * blocks.vocab) > vocab:
        count += 1
    starts = [(vocab - width, (count - 1) * width)]
    starts += [(i * width, i * width) for i in range(count - 1)]
    programs = arrays.hidden.shape[0] // blocks.tokens * (width // blocks.vocab)
    return (programs,), width, jnp.array(starts, jnp.int32)


def _call(kernel, grid, sizes: _Sizes, options: Options, *arrays, out) -> jax.Array:
    """Runs a kernel, a function of sizes, options, and references to arrays and the result."""
    shape, dtype = out
    varying = jax.typeof(arrays[0].hidden).manual_axis_type
    blocks = sizes.blocks
    name = getattr(kernel, "func", kernel).__name__
    run = pl.pallas_call(
        functools.partial(kernel, sizes, options),
        grid=grid,
        out_shape=jax.ShapeDtypeStruct(shape, dtype, manual_axis_type=varying),
        compiler_params=plgpu.CompilerParams(
            num_warps=blocks.num_warps, num_stages=blocks.num_stages
        ),
        interpret=options.interpret,
        name=f"linear_cross_entropy{name}",
    )
    return run(*arrays)


def _tile(sizes: _Sizes, options: Options, refs: _Arrays, rows, first, counted) -> Tile:
    """The logits [n, v] of some tokens and a block of the vocabulary.

    Args:
        sizes: sizes of the tile.
        options: options of the kernel.
        refs: references to its arrays.
        rows: the tokens.
        first: start of the block, which must not exceed the vocabulary.
        counted: first entry of the vocabulary that counts.
    """
    blocks = sizes.blocks
    shape = (blocks.tokens, blocks.vocab)
    columns = pl.ds(first, blocks.vocab)

    def add(i, total):
        part = pl.ds(i * blocks.width, blocks.width)
        return total + product(refs.hidden[rows, part], refs.weight[columns, part], 1, 1)

    parts = refs.hidden.shape[1] // blocks.width
    values = jax.lax.fori_loop(0, parts, add, jnp.zeros(shape))
    if refs.bias is not None:
        values += refs.bias[columns][None, :]
    ids = first + jax.lax.broadcasted_iota(jnp.int32, shape, 1)
    inside = (ids >= counted) & (ids < sizes.vocab)
    hits = inside & (ids == refs.targets[rows][:, None])
    return Tile(*bend(values, options.cap), hits, inside, axis=1)


def _statistics_kernel(run: int, sizes: _Sizes, options: Options, refs: _Arrays, out) -> None:
    """Statistics of a block of tokens over `run` tiles of the vocabulary, or fewer at its end."""
    blocks, vocab = sizes.blocks, refs.weight.shape[0]
    split = pl.program_id(0)
    rows = pl.ds(pl.program_id(1) * blocks.tokens, blocks.tokens)

    def fold(i, past):
        counted = i * blocks.vocab
        first = jnp.minimum(counted, vocab - blocks.vocab)
        return _tile(sizes, options, refs, rows, first, counted).fold(past)

    last = jnp.minimum((split + 1) * run, pl.cdiv(vocab, blocks.vocab))
    nothing = start((blocks.tokens, 1), options.wanted)
    found = jax.lax.fori_loop(split * run, last, fold, nothing).statistics()
    for i, x in enumerate(jax.tree.leaves(found)):
        out[split, i, rows] = x.reshape(blocks.tokens)


def _gradient_kernel(sizes: _Sizes, options: Options, refs: _Arrays, places, out) -> None:
    """The gradient of the logits of one tile of a chunk; `places` is a row of `_chunks`.

    Concurrent programs cover `GROUP` tiles of the vocabulary and some blocks of tokens.
    """
    blocks = sizes.blocks
    height, tiles = out.shape[0] // blocks.tokens, out.shape[1] // blocks.vocab
    group, i = divide(pl.program_id(0), GROUP * height)
    row, column = divide(i, jnp.minimum(GROUP, tiles - GROUP * group))
    rows = pl.ds(row * blocks.tokens, blocks.tokens)
    columns = (GROUP * group + column) * blocks.vocab
    tile = _tile(sizes, options, refs, rows, places[0] + columns, places[1])
    slopes = [refs.slopes[i, rows][:, None] for i in range(refs.slopes.shape[0])]
    grad = tile.gradient(slopes, options.wanted)
    out[rows, pl.ds(columns, blocks.vocab)] = grad.astype(out.dtype)
