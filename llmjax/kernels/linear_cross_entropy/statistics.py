"""Statistics of a token's logits that determine its loss, and their gradient.

With logits l, p = softmax(l) and target y, every loss here is a function of four statistics: the
log-sum-exp Z, l_y, Σ l and Σ p·l. Their derivatives with respect to l_i are p_i, [i = y], 1 and
p_i (1 + l_i - Σ p·l), so the gradient of any function of them is

    p_i (softmax + weighted · l_i) + target · [i = y] + every

with four numbers per token, `Slopes`. An implementation computes the statistics, and gradients from
the slopes; the losses themselves are written once, in plain JAX.
"""

import dataclasses
from collections.abc import Iterable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp


class Statistics(NamedTuple):
    """Statistics of each token's logits, float32; None if not requested.

    Attributes:
        log_sum: Z = log Σ exp(l).
        target: l_y; arbitrary if there is no target.
        total: Σ l.
        expected: Σ p·l.
    """

    log_sum: jax.Array
    target: jax.Array
    total: jax.Array | None = None
    expected: jax.Array | None = None


class Wanted(NamedTuple):
    """Which statistics to compute besides the first two."""

    total: bool = False
    expected: bool = False

    @property
    def rows(self) -> int:
        """The number of statistics."""
        return 2 + self.total + self.expected

    def statistics(self, rows: Iterable[jax.Array]) -> Statistics:
        """`Statistics` from its leaves."""
        found = iter(rows)
        log_sum, target = next(found), next(found)
        total = next(found) if self.total else None
        return Statistics(log_sum, target, total, next(found) if self.expected else None)


@jax.tree_util.register_static
@dataclasses.dataclass(frozen=True)
class Trained:
    """Which parts of a head are trained; the gradient of a frozen part would be wasted work."""

    weight: bool
    bias: bool


def differentiated(weight: Any, bias: Any) -> Trained:
    """The trained parts, from the arguments of a forward rule with symbolic zeros."""

    def one(tree: Any) -> bool:
        leaves = jax.tree.leaves(tree, is_leaf=lambda arg: hasattr(arg, "perturbed"))
        return any(leaf.perturbed for leaf in leaves)

    return Trained(one(weight), one(bias))


def primals(args: Any) -> Any:
    """The values of such a rule's arguments."""
    return jax.tree.map(lambda arg: arg.value, args, is_leaf=lambda arg: hasattr(arg, "perturbed"))


def instantiated(cotangents: Any) -> Any:
    """The cotangents of a backward rule with symbolic zeros, as arrays."""

    def one(x: Any) -> jax.Array:
        is_zero = isinstance(x, jax.custom_derivatives.SymbolicZero)
        return jnp.zeros(x.shape, x.dtype) if is_zero else x

    return jax.tree.map(one, cotangents, is_leaf=lambda x: hasattr(x, "aval"))


def nonzero(cotangents: Statistics) -> Statistics:
    """Cotangents as arrays, but None for optional statistics whose cotangent is zero.

    For example, an entropy that is only logged then costs no pass over the logits.
    """

    def one(x: Any) -> Any:
        return None if isinstance(x, jax.custom_derivatives.SymbolicZero) else x

    total, expected = one(cotangents.total), one(cotangents.expected)
    return instantiated(cotangents._replace(total=total, expected=expected))


class Options(NamedTuple):
    """Static options: the statistics, the cap, and whether Pallas interprets the kernel."""

    wanted: Wanted
    cap: float
    interpret: bool


class Slopes(NamedTuple):
    """Coefficients of the gradient of a token's logits, float32; see above. None means 0."""

    softmax: jax.Array
    target: jax.Array
    every: jax.Array | None = None
    weighted: jax.Array | None = None


def slopes(statistics: Statistics, cotangents: Statistics) -> Slopes:
    """The slopes for these cotangents of the statistics."""
    softmax = cotangents.log_sum
    if statistics.expected is not None and cotangents.expected is not None:
        softmax += cotangents.expected * (1 - statistics.expected)
    return Slopes(softmax, cotangents.target, cotangents.total, cotangents.expected)


def combine(parts: Statistics) -> Statistics:
    """The statistics of a vocabulary from those of its parts, along the first axis."""
    log_sum = jax.nn.logsumexp(parts.log_sum, axis=0)
    shares = jnp.exp(parts.log_sum - log_sum)
    return Statistics(
        log_sum,
        jnp.sum(parts.target, axis=0),
        None if parts.total is None else jnp.sum(parts.total, axis=0),
        None if parts.expected is None else jnp.sum(shares * parts.expected, axis=0),
    )


class TokenLoss(NamedTuple):
    """Z - (1-ε) l_y - ε mean(l) + z_loss · Z², see `api.linear_cross_entropy`.

    Attributes:
        vocab_size: V.
        label_smoothing: ε.
        z_loss: weight of Z².
    """

    vocab_size: int
    label_smoothing: float
    z_loss: float

    @property
    def wanted(self) -> Wanted:
        """The statistics that it needs."""
        return Wanted(total=bool(self.label_smoothing))

    def __call__(self, found: Statistics, targets: jax.Array) -> jax.Array:
        """The loss of every token; 0 where its target is -1."""
        expected = (1 - self.label_smoothing) * found.target
        if found.total is not None:
            expected += self.label_smoothing / self.vocab_size * found.total
        losses = found.log_sum - expected + self.z_loss * found.log_sum**2
        return jnp.where(targets >= 0, losses, 0.0)
