"""Statistics of logits, and gradients, over chunks of tokens.

The gradient of a sum over tokens with respect to the logits is known as soon as the logits are.
`token_losses` therefore computes the loss and both gradients from each chunk of logits at once, and
never recomputes it: three matrix products, and memory for one chunk. `statistics` does not know the
cotangents yet, and recomputes the logits for the gradient: four products.
"""

import functools
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from llmjax import collectives, mesh
from llmjax.kernels import tuning
from llmjax.kernels.cap import bend
from llmjax.kernels.linear_cross_entropy.statistics import (
    Slopes,
    Statistics,
    TokenLoss,
    Trained,
    Wanted,
    differentiated,
    instantiated,
    nonzero,
    primals,
    slopes,
)
from llmjax.kernels.tiling import pad
from llmjax.weights import Held, parted

CHUNK_BYTES = 64 * 2**20  # size of a chunk of logits on one device; larger on accelerators


@functools.partial(jax.custom_vjp, nondiff_argnums=(4, 5))
def token_losses(
    hidden, weight, bias, targets, loss: TokenLoss, cap: float
) -> tuple[jax.Array, jax.Array]:
    """(sum of losses, loss of every token [B, S]); only the sum is differentiable."""
    losses = loss(statistics(hidden, weight, bias, targets, loss.wanted, cap), targets)
    return jnp.sum(losses), losses


def _losses_forward(hidden, weight, bias, targets, loss, cap):
    trained = differentiated(weight, bias)
    hidden, weight, bias, targets = primals((hidden, weight, bias, targets))

    def one(hidden, targets, head):
        logits = _Logits(hidden, targets, head, cap, loss.wanted)
        losses, pull = jax.vjp(lambda found: loss(found, targets), logits.statistics)
        (cotangents,) = pull(jnp.ones_like(losses))
        grad_hidden, grad_head = logits.gradients(slopes(logits.statistics, cotangents), trained)
        return (losses, grad_hidden), grad_head

    outs, grad_head = _over_chunks(one, (hidden, targets), (weight, bias), trained)
    losses, grad_hidden = outs
    return (jnp.sum(losses), losses), (grad_hidden, *grad_head)


def _losses_backward(loss, cap, grads, cotangents):
    cotangent = instantiated(cotangents[0])
    scaled = jax.tree.map(lambda grad: cotangent.astype(grad.dtype) * grad, grads)
    return *scaled, None


token_losses.defvjp(_losses_forward, _losses_backward, symbolic_zeros=True)


@functools.partial(jax.custom_vjp, nondiff_argnums=(4, 5))
def statistics(hidden, weight, bias, targets, wanted: Wanted, cap: float) -> Statistics:
    """Statistics of every token's logits, each [B, S]; see `api.linear_cross_entropy`."""

    def one(hidden, targets, head):
        return _Logits(hidden, targets, head, cap, wanted).statistics, None

    return _over_chunks(one, (hidden, targets), (weight, bias))[0]


def _statistics_forward(hidden, weight, bias, targets, wanted, cap):
    trained = differentiated(weight, bias)
    hidden, weight, bias, targets = primals((hidden, weight, bias, targets))
    found = statistics(hidden, weight, bias, targets, wanted, cap)
    return found, (hidden, weight, bias, targets, found, trained)


def _statistics_backward(wanted, cap, residuals, cotangents):
    hidden, weight, bias, targets, found, trained = residuals

    def one(hidden, targets, slopes, head):
        return _Logits(hidden, targets, head, cap, wanted).gradients(slopes, trained)

    tokens = (hidden, targets, slopes(found, nonzero(cotangents)))
    grad_hidden, grad_head = _over_chunks(one, tokens, (weight, bias), trained)
    return grad_hidden, *grad_head, None


statistics.defvjp(_statistics_forward, _statistics_backward, symbolic_zeros=True)


class _Head(NamedTuple):
    weight: jax.Array  # [V, D], in the precision of the hidden states
    bias: jax.Array | None  # [V]
    terms: jax.core.ShapedArray | None  # type of the weight's terms of a gradient, if it has them


class _Logits:
    """The logits [N, V] of a chunk of N tokens."""

    def __init__(self, hidden, targets, head: _Head, cap: float, wanted: Wanted) -> None:
        self.hidden, self.targets, self.head = hidden, targets, head
        accumulate = jnp.promote_types(hidden.dtype, jnp.float32)
        self.product = functools.partial(jnp.einsum, preferred_element_type=accumulate)
        product = mesh.sharded(self.product, ("tokens", "vocab"))
        logits = product("nd,vd->nv", hidden, head.weight)
        # Computed from the rows of the weight, not looked up in the logits: this works with a
        # sharded vocabulary and saves a pass over the logits.
        index = jnp.maximum(targets, 0)
        rows = mesh.sharded(head.weight.at[index].get, ("tokens", None))()
        at_target = self.product("nd,nd->n", hidden, rows)
        if head.bias is not None:
            bias = jnp.asarray(head.bias, accumulate)
            logits += bias
            at_target += mesh.sharded(bias.at[index].get, ("tokens",))()
        self.values, self.slope = bend(logits, cap)
        at_target, _ = bend(at_target, cap)
        highest = jnp.max(self.values, axis=-1, keepdims=True)
        self.powers = jnp.exp(self.values - highest)
        self.sum = jnp.sum(self.powers, axis=-1, keepdims=True)
        self.statistics = Statistics(
            (highest + jnp.log(self.sum))[:, 0],
            at_target,
            jnp.sum(self.values, axis=-1) if wanted.total else None,
            jnp.sum(self.powers * self.values, axis=-1) / self.sum[:, 0]
            if wanted.expected
            else None,
        )

    def gradients(
        self, slopes: Slopes, trained: Trained
    ) -> tuple[jax.Array, tuple[jax.Array | None, jax.Array | None]]:
        """Gradients of the hidden states [N, D], and of weight [V, D] and bias [V] if trained."""
        columns = jax.tree.map(lambda x: x[:, None], slopes)
        grad = self.powers * (columns.softmax / self.sum)
        if columns.weighted is not None:
            grad += self.powers * self.values * (columns.weighted / self.sum)
        iota = jax.lax.broadcasted_iota(jnp.int32, grad.shape, 1)
        grad += jnp.where(iota == self.targets[:, None], columns.target, 0.0)
        if columns.every is not None:
            grad += columns.every
        grad = (grad * self.slope).astype(self.hidden.dtype)
        grad_hidden = mesh.sharded(jnp.einsum, ("tokens", None))(
            "nv,vd->nd", grad, self.head.weight
        )
        grad_weight = grad_bias = None
        if trained.weight:
            grad_weight = self._by_weight(grad)
        if trained.bias:
            # A product, because XLA:CPU is slow at summing columns.
            ones = jnp.ones_like(self.targets, grad.dtype)
            product = mesh.sharded(self.product, ("vocab",))
            grad_bias = product("nv,n->v", grad, ones)
        return grad_hidden, (grad_weight, grad_bias)

    def _by_weight(self, grad: jax.Array) -> jax.Array:
        if self.head.terms is None:
            product = mesh.sharded(self.product, ("vocab", "outer_embed"))
            return product("nv,nd->vd", grad, self.hidden)
        product, over = functools.partial(self.product, "nv,nd->vd"), collectives.split(grad)[0]
        arrays = grad, self.hidden
        return collectives.terms_of_sum(product, arrays, frozenset(over), self.head.terms)


class Chunk(NamedTuple):
    """Size for `tuning`: bytes of a chunk of logits on one device."""

    chunk_bytes: int


def chunks(hidden: jax.Array, vocab: int) -> int:
    """The number of chunks of the sequence in [B, S, D]: the fewest that fit and divide it.

    If these are twice the fewest that fit, or more (of a prime length, one per token), the last
    chunk is padded instead.
    """
    batch, length, width = hidden.shape
    rows = -(-batch // mesh.size("tokens")) * -(-vocab // mesh.size("vocab"))
    # An H100 takes 21 ms with chunks of 64 MB and 9 ms with larger ones; on CPUs the size does not
    # matter. Every chunk reads and writes the float32 sum of the weight's gradient: 2.1 GB for
    # 4,096 channels and a vocabulary of 128,256, so smaller chunks would save little memory.
    usual = CHUNK_BYTES if mesh.platform() == "cpu" else 8 * CHUNK_BYTES
    case = tuning.case(hidden.dtype, width)
    limit = tuning.sizes("linear_cross_entropy.xla", case, Chunk(usual)).chunk_bytes
    fit = max(1, limit // (4 * rows))
    fewest = -(-length // fit)
    return next((n for n in range(fewest, 2 * fewest) if length % n == 0), fewest)


def _over_chunks(
    one: Callable, tokens: tuple, head: tuple, trained: Trained | None = None
) -> tuple:
    """Runs `one(*chunks of tokens, head)` on each chunk in turn.

    Args:
        one: maps chunks [N, ...] to arrays [N, ...] and gradients of the trained head parameters.
        tokens: trees of arrays [B, S, ...], the hidden states first.
        head: weight (an array, or a `Held` one with terms) and bias.
        trained: trained parts of the head; None if no gradients are needed.

    Returns:
        The arrays [B, S, ...], and the sums of the gradients, or None.
    """
    hidden, (given, bias) = tokens[0], head
    weight, terms = parted(given)
    batch = hidden.shape[0]
    count = chunks(hidden, weight.shape[0])
    # The width is gathered here, once, rather than for every chunk.
    whole = mesh.place(weight.astype(hidden.dtype), ("vocab", None))
    ready = _Head(whole, bias, None if terms is None else jax.typeof(terms))

    def run(chunk):
        return one(*jax.tree.map(_rows, chunk), ready)

    def add(total, chunk):
        outs, grad = run(chunk)
        return jax.tree.map(jnp.add, total, grad), outs

    def zeros(x):
        return jnp.zeros_like(x, dtype=jnp.promote_types(x.dtype, jnp.float32))

    wanted = None
    if trained is not None:
        place = weight if terms is None else terms
        wanted = place if trained.weight else None, bias if trained.bias else None
    start = jax.tree.map(zeros, wanted)
    if count == 1:
        outs, total = run(tokens)
        outs = jax.tree.map(lambda x: x[None], outs)
    else:
        cut = jax.tree.map(functools.partial(_cut, count=count), tokens)
        total, outs = jax.lax.scan(add, start, cut)
    outs = jax.tree.map(lambda x: _join(x, batch)[:, : hidden.shape[1]], outs)
    grads = jax.tree.map(lambda grad, x: grad.astype(x.dtype), total, wanted)
    if terms is not None and grads is not None:
        grads = Held(None, None, grads[0]), grads[1]
    return outs, grads


def _rows(x):
    """[B, s, ...] to [N, ...]."""
    batch, length, *rest = x.shape
    return _reshape(x, batch * length, *rest)


def _reshape(x, *shape):
    """Reshapes x; JAX cannot infer the sharding of the first axis if a length is 1."""
    return mesh.sharded(jnp.reshape, ("tokens", *(None for _ in shape[1:])))(x, shape)


def _cut(x, count):
    """[B, S, ...] to [count, B, s, ...], padded with zeros and, for targets, -1."""
    missing = -1 if jnp.issubdtype(x.dtype, jnp.integer) else 0
    x = pad(x, 1, -(-x.shape[1] // count), missing)
    batch, length, *rest = x.shape
    return jnp.moveaxis(x.reshape(batch, count, length // count, *rest), 1, 0)


def _join(x, batch):
    """Chunks [count, N, ...] to [B, S, ...]."""
    count, rows, *rest = x.shape
    split = mesh.sharded(jnp.reshape, (None, "tokens", *(None for _ in (rows, *rest))))
    x = jnp.moveaxis(split(x, (count, batch, rows // batch, *rest)), 0, 1)
    return _reshape(x, batch, count * (rows // batch), *rest)
