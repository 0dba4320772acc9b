"""Muon: orthogonalized momentum (Jordan 2024; Liu et al. 2025)."""

import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from llmjax import mesh
from llmjax.optim.adam import zeros
from llmjax.spec import Param

COEFFICIENTS = (3.4445, -4.7750, 2.0315)  # Jordan's quintic, steep at 0 for fast convergence
ITERATIONS = 5
ADAM_RMS = 0.2  # Liu et al., equation 4: updates match AdamW's size and can share its rate


class MuonState(NamedTuple):
    """The running mean of the gradients, float32 or wider."""

    momentum: Any


def scale_by_muon(momentum: float, spec: Any) -> optax.GradientTransformation:
    """Replaces gradients by orthogonalized Nesterov momentum.

    Args:
        momentum: decay of the mean.
        spec: the tree of `Param` of the updated weights (`MaskedNode` where optax masks). A
            weight is the matrix of its rows and columns (`Param.inputs`); stacked layers and
            experts are a batch of such matrices.
    """

    def init(params):
        return MuonState(zeros(params))

    def update(updates, state, params=None):
        del params

        def mix(mean, grad):
            return momentum * mean + (1 - momentum) * grad

        mean = jax.tree.map(mix, state.momentum, updates)
        nesterov = jax.tree.map(mix, mean, updates)
        return jax.tree.map(_orthogonal, nesterov, spec), MuonState(mean)

    return optax.GradientTransformation(init, update)


def _orthogonal(update: jax.Array, param: Param) -> jax.Array:
    """The update with its singular values near 1, times 0.2 √(larger side)."""
    stack, sides = update.shape[: param.stacked], update.shape[param.stacked :]
    rows = math.prod(sides[: param.inputs])
    # Matrices are gathered, as products of split ones would communicate at each iteration. Stages
    # keep their layers, and devices their experts.
    axes = (*param.axes[: param.stacked], *(None for _ in sides))
    matrices = mesh.place(update, axes).reshape(*stack, rows, -1)
    result = orthogonalize(matrices) * (ADAM_RMS * max(matrices.shape[-2:]) ** 0.5)
    return mesh.place(result.reshape(update.shape), param.axes)


def orthogonalize(matrices: jax.Array) -> jax.Array:
    """Newton-Schulz iteration towards U Vᵀ of each matrix [..., m, n].

    Singular values above a fiftieth of the Frobenius norm end in (0.65, 1.2).
    """
    a, b, c = COEFFICIENTS
    flat = matrices.shape[-2] <= matrices.shape[-1]
    x = matrices if flat else jnp.swapaxes(matrices, -1, -2)
    norms = jnp.sqrt(jnp.sum(jnp.square(x), axis=(-1, -2), keepdims=True))
    x = x / (norms + 1e-7)
    for _ in range(ITERATIONS):
        gram = x @ jnp.swapaxes(x, -1, -2)
        x = a * x + (b * gram + c * gram @ gram) @ x
    return x if flat else jnp.swapaxes(x, -1, -2)
