"""Statistics of logits, and gradients, by tiles that stay in a TPU core's memory.

No logit is ever written: the forward pass folds each tile into running statistics, and the backward
pass recomputes it, once for the gradient of the hidden states and once for that of the weight. This
takes five matrix products where the chunks of `xla` take three or four, but saves their traffic.
Tiles are [vocabulary, tokens]: sums over the vocabulary then run over sublanes, and per-token
numbers lie along lanes, where they need no padding.
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from llmjax.kernels import tuning
from llmjax.kernels.cap import bend
from llmjax.kernels.linear_cross_entropy.statistics import (
    Options,
    Statistics,
    differentiated,
    instantiated,
    primals,
    slopes,
)
from llmjax.kernels.linear_cross_entropy.tile import Tile, start
from llmjax.kernels.tiling import LANES, column, pad, product

FIXED = 1024  # maximum rows of the block that stays in memory while the other side streams by
PASSING = 512  # maximum rows of a streamed block
BLOCKS_BYTES = 44 * 2**20  # memory for a kernel's blocks and accumulators
MEMORY_BYTES = 60 * 2**20  # the same with its tiles; every chip has 64 MB or more


class Most(NamedTuple):
    """Sizes for `tuning`: the maximum rows of both blocks, powers of two."""

    fixed: int
    passing: int


class _Arrays(NamedTuple):
    """Inputs of a kernel; within a kernel, references to blocks."""

    targets: Any  # int32 [1, N]
    hidden: Any  # [N, D]
    weight: Any  # [V, D]
    bias: Any  # [1, V] or None
    slopes: Any  # [.., N] or None: log-sum-exps, then the fields of `Slopes` that are not None


class _Sizes(NamedTuple):
    vocab: int
    tokens_block: int
    vocab_block: int

    @property
    def ragged(self) -> bool:
        """Whether the last block of the vocabulary is partial."""
        return self.vocab % self.vocab_block > 0


def widest(dtype: jnp.dtype) -> int:
    """The maximum number of channels in this precision for which the smallest blocks fit."""
    size = jnp.dtype(dtype).itemsize
    return BLOCKS_BYTES // (LANES * (4 + 2 * (size + 4) + 2 * size))


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
    arrays = _arrays(hidden, weight, bias, targets)
    count = options.wanted.rows
    (rows,) = _call(
        _statistics_kernel,
        arrays,
        options,
        by_tokens=True,
        outs=[("row", (count, arrays.hidden.shape[0]), jnp.float32)],
        scratch=lambda sizes: [(count + 1, sizes.tokens_block)],
    )
    return options.wanted.statistics(rows[:, : len(targets)])


def _backward(options, residuals, cotangents):
    hidden, weight, bias, targets, found, trained = residuals
    rows = [found.log_sum, *jax.tree.leaves(slopes(found, instantiated(cotangents)))]
    arrays = _arrays(hidden, weight, bias, targets, jnp.stack(rows))
    width = hidden.shape[1]
    call = functools.partial(_call, arrays=arrays, options=options)
    (grad_hidden,) = call(
        _hidden_kernel,
        by_tokens=True,
        outs=[("hidden", arrays.hidden.shape, hidden.dtype)],
        scratch=lambda sizes: [(sizes.tokens_block, width)],
    )
    grad_hidden = grad_hidden[: len(targets)]
    # XLA would run the kernel even if its result were unused.
    if not (trained.weight or trained.bias):
        return grad_hidden, None, None, None
    outs = [("weight", weight.shape, weight.dtype)]
    if bias is not None:
        outs.append(("bias", arrays.bias.shape, bias.dtype))
    grad_weight, *grad_bias = call(
        _weight_kernel,
        by_tokens=False,
        outs=outs,
        scratch=lambda sizes: [(sizes.vocab_block, width), (8, sizes.vocab_block)][: len(outs)],
    )
    return grad_hidden, grad_weight, grad_bias[0][0] if grad_bias else None, None


statistics.defvjp(_forward, _backward, symbolic_zeros=True)


def _arrays(hidden, weight, bias, targets, rows=None) -> _Arrays:
    """The arrays, padded to whole blocks of tokens: by at most an eighth, or to 128."""
    unit = LANES
    while unit < FIXED and 16 * unit <= len(targets):
        unit *= 2
    # The last block may extend beyond the vocabulary and must not match a target there.
    targets = jnp.where(targets < weight.shape[0], targets, -1)
    return _Arrays(
        pad(targets[None], 1, unit, -1),
        pad(hidden, 0, unit),
        weight.astype(hidden.dtype),
        None if bias is None else bias[None],
        None if rows is None else pad(rows, 1, unit),
    )


def _sizes(arrays: _Arrays, by_tokens: bool, fixed_bytes: int) -> _Sizes:
    """The largest blocks that fit; those of the vocabulary divide it if possible.

    Args:
        arrays: the kernel's inputs.
        by_tokens: whether the block of tokens is the fixed one.
        fixed_bytes: bytes per element of everything that has the fixed block's size.
    """
    tokens, width = arrays.hidden.shape
    vocab = arrays.weight.shape[0]
    case = tuning.case(arrays.hidden.dtype, width)
    fixed, passing = tuning.sizes("linear_cross_entropy.pallas_tpu", case, Most(FIXED, PASSING))
    passing_bytes = 2 * arrays.hidden.dtype.itemsize
    while width * (fixed * fixed_bytes + passing * passing_bytes) > BLOCKS_BYTES:
        fixed, passing = (fixed // 2, passing) if fixed >= passing else (fixed, passing // 2)
    most_tokens, most_vocab = (fixed, passing) if by_tokens else (passing, fixed)
    vocab_block = _largest(vocab, most_vocab, 16 if arrays.bias is None else LANES)
    if 2 * vocab_block < most_vocab:
        vocab_block = min(most_vocab, vocab)
    return _Sizes(vocab, _largest(tokens, most_tokens, LANES), vocab_block)


def _largest(length: int, limit: int, step: int) -> int:
    """The largest multiple of `step` up to `limit` that divides `length`; 0 if there is none."""
    return max((n for n in range(step, limit + 1, step) if length % n == 0), default=0)


def _call(
    kernel: Callable, arrays: _Arrays, options: Options, *, by_tokens: bool, outs, scratch
) -> list[jax.Array]:
    """Runs a kernel on every tile, one block of tokens, or of the vocabulary, after another.

    Args:
        kernel: function of `_Sizes`, `Options`, references to `_Arrays`, results and scratch.
        arrays: its inputs.
        options: its options.
        by_tokens: whether the block of tokens is the fixed one, or that of the vocabulary.
        outs: kind, shape and dtype of each result.
        scratch: from `_Sizes` to the shapes of float32 scratch arrays.
    """
    kinds = _Arrays("row", "hidden", "weight", "bias", "row")
    fixed = ("hidden", "row") if by_tokens else ("weight", "bias")
    # Blocks are double-buffered; accumulators are not.
    dtypes = [arrays.hidden.dtype, *(dtype for kind, _, dtype in outs if kind in fixed)]
    wide = [jnp.dtype(dtype).itemsize for dtype in dtypes]
    sizes = _sizes(arrays, by_tokens, 4 + 2 * sum(wide))
    count = (arrays.hidden.shape[0], sizes.vocab)
    blocks = (count[0] // sizes.tokens_block, -(-count[1] // sizes.vocab_block))

    def spec(kind: str, x: Any) -> pl.BlockSpec | None:
        if x is None:
            return None
        shape, where = {
            "row": ((x.shape[0], sizes.tokens_block), lambda t, v: (0, t)),
            "hidden": ((sizes.tokens_block, x.shape[1]), lambda t, v: (t, 0)),
            "weight": ((sizes.vocab_block, x.shape[1]), lambda t, v: (v, 0)),
            "bias": ((1, sizes.vocab_block), lambda t, v: (0, v)),
        }[kind]
        return pl.BlockSpec(shape, where if by_tokens else lambda v, t: where(t, v))

    varying = jax.typeof(arrays.hidden).manual_axis_type
    shapes = [jax.ShapeDtypeStruct(s, d, manual_axis_type=varying) for _, s, d in outs]
    run = pl.pallas_call(
        functools.partial(kernel, sizes, options),
        grid=blocks if by_tokens else blocks[::-1],
        in_specs=[_Arrays(*map(spec, kinds, arrays))],
        out_specs=[spec(kind, x) for (kind, *_), x in zip(outs, shapes, strict=True)],
        out_shape=shapes,
        scratch_shapes=[pltpu.VMEM(shape, jnp.float32) for shape in scratch(sizes)],
        compiler_params=pltpu.CompilerParams(
            dimension_semantics=("parallel", "arbitrary"), vmem_limit_bytes=MEMORY_BYTES
        ),
        cost_estimate=_cost(arrays, blocks[0] if by_tokens else blocks[1], by_tokens),
        interpret=options.interpret,
        name=f"linear_cross_entropy{kernel.__name__}",
    )
    return run(arrays)


def _cost(arrays: _Arrays, passes: int, by_tokens: bool) -> pl.CostEstimate:
    """A kernel's cost: the fixed side is read once, the other once per block of the fixed side."""
    logits = arrays.hidden.shape[0] * arrays.weight.shape[0]
    products = 1 if arrays.slopes is None else 2
    once, often = (arrays.hidden, arrays.weight)[:: 1 if by_tokens else -1]
    return pl.CostEstimate(
        flops=2 * products * logits * arrays.hidden.shape[1],
        transcendentals=logits,
        bytes_accessed=(once.size + passes * often.size) * once.dtype.itemsize,
    )


def _tile(sizes: _Sizes, options: Options, refs: _Arrays, block) -> tuple[Tile, jax.Array]:
    """The logits [v, n] of a block of the vocabulary and of tokens, and the weight's block."""
    first = block * sizes.vocab_block
    shape = (sizes.vocab_block, sizes.tokens_block)
    ids = first + jax.lax.broadcasted_iota(jnp.int32, shape, 0)
    weight, inside = refs.weight[...], None
    if sizes.ragged:
        # The memory after the last row may hold anything, even NaN, which 0 does not cancel.
        rows = first + jax.lax.broadcasted_iota(jnp.int32, weight.shape, 0)
        weight, inside = jnp.where(rows < sizes.vocab, weight, 0), ids < sizes.vocab
    values = product(weight, refs.hidden[...], 1, 1)
    if refs.bias is not None:
        values += column(refs.bias[...])
    return Tile(*bend(values, options.cap), ids == refs.targets[...], inside, axis=0), weight


def _gradient(sizes, options, refs, block) -> tuple[jax.Array, jax.Array]:
    """The gradient of the logits before the cap, [v, n], and the weight's block."""
    tile, weight = _tile(sizes, options, refs, block)
    return tile.gradient(_rows(refs.slopes), options.wanted).astype(weight.dtype), weight


def _statistics_kernel(sizes, options, refs, out, running) -> None:
    nothing = start((1, sizes.tokens_block), options.wanted)

    @pl.when(pl.program_id(1) == 0)
    def _begin():
        _write(running, nothing)

    past = jax.tree.unflatten(jax.tree.structure(nothing), _rows(running))
    tile, _ = _tile(sizes, options, refs, pl.program_id(1))
    found = tile.fold(past)
    _write(running, found)

    @pl.when(pl.program_id(1) == pl.num_programs(1) - 1)
    def _finish():
        _write(out, found.statistics())


def _rows(ref) -> list[jax.Array]:
    """The rows of a reference, each [1, n]."""
    return [ref[i : i + 1] for i in range(ref.shape[0])]


def _write(ref, rows) -> None:
    for i, row in enumerate(jax.tree.leaves(rows)):
        ref[i : i + 1] = row


def _hidden_kernel(sizes, options, refs, grad_hidden, total) -> None:
    grad, weight = _gradient(sizes, options, refs, pl.program_id(1))
    _accumulate(total, product(grad, weight, 0, 0), grad_hidden)


def _weight_kernel(sizes, options, refs, grad_weight, *more) -> None:
    grad, _ = _gradient(sizes, options, refs, pl.program_id(0))
    if refs.bias is None:
        (total,) = more
    else:
        grad_bias, total, bias_total = more
        # Computed as a product, so that the sums lie along lanes instead of sublanes.
        ones = jnp.ones((8, grad.shape[1]), grad.dtype)
        _accumulate(bias_total, product(ones, grad, 1, 1), grad_bias)
    _accumulate(total, product(grad, refs.hidden[...], 1, 0), grad_weight)


def _accumulate(total, x, out) -> None:
    """Adds x to a total that starts at 0, and writes the total in the last step."""

    @pl.when(pl.program_id(1) == 0)
    def _begin():
        total[...] = jnp.zeros(total.shape)

    total[...] += x

    @pl.when(pl.program_id(1) == pl.num_programs(1) - 1)
    def _finish():
        out[...] = total[: out.shape[0]].astype(out.dtype)
