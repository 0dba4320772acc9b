"""Law 1: the loss and its gradient do not depend on how a batch is cut.

Micro-batches, accumulation and devices give one result, to the rounding of float32 sums, though
the rows have between 0 and 13 targets. A mean of means is off by far more.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from llmjax import mesh, models
from llmjax.objectives import Weighted, clm
from llmjax.train import make_step

TOLERANCE = 2e-6  # relative

# name: (micro-batches, devices by mesh axis)
CUTS = {
    "2 micro-batches": (2, None),
    "8 micro-batches": (8, None),
    "8 devices": (1, (8, 1, 1)),
    "4 micro-batches on 2 devices": (4, (2, 1, 1)),
    "2 micro-batches on 2 x 2 x 2 devices": (2, (2, 2, 2)),
}


class Seen(NamedTuple):
    """The gradient of the last step."""

    grads: Any
    learning_rate: jax.Array


def _init(params):
    return Seen(jax.tree.map(jnp.zeros_like, params), jnp.zeros(()))


def _update(grads, state, params=None):
    return jax.tree.map(jnp.zeros_like, grads), Seen(grads, state.learning_rate)


RECORDER = optax.GradientTransformation(_init, _update)


@pytest.fixture(scope="module")
def run(gpt2, draw, on_mesh, start):
    """`run(batch, …)`: loss, number of targets and gradient of one step."""
    spec = models.spec(gpt2)
    params = draw(spec)

    def once(batch, accumulate=1, sizes=None, loss=None):
        loss = clm(gpt2, label_smoothing=0.1, z_loss=1e-3) if loss is None else loss
        step = make_step(loss, RECORDER, accumulate=accumulate)
        with on_mesh(sizes):
            state, metrics = step(start(spec, params, RECORDER), mesh.shard_batch(batch))
            return jax.device_get((metrics["loss"], metrics["tokens"], state.opt_state.grads))

    return once


@pytest.fixture(scope="module")
def whole(run, packed):
    return run(packed)


def assert_same(one, other):
    """Losses, numbers of targets, and gradients: the latter by the largest entry of all.

    Not by that of each array: the gradient by the bias of the keys is 0 but for rounding.
    """
    np.testing.assert_allclose(one[:2], other[:2], rtol=TOLERANCE)
    assert difference(one[2], other[2]) < TOLERANCE


def difference(one, other) -> float:
    pairs = list(zip(jax.tree.leaves(one), jax.tree.leaves(other), strict=True))
    return max(np.abs(a - b).max() for a, b in pairs) / max(np.abs(b).max() for _, b in pairs)


@pytest.mark.parametrize("cut", CUTS)
def test_every_cut_gives_one_loss_and_gradient(cut, run, packed, whole):
    assert_same(run(packed, *CUTS[cut]), whole)


def test_rows_in_another_order_give_the_same(run, packed, whole):
    order = np.random.RandomState(1).permutation(8)
    shuffled = {name: rows[order] for name, rows in packed.items()}
    assert_same(run(shuffled), whole)


def test_number_of_targets_is_counted(packed, whole):
    assert whole[1] == (packed["targets"] >= 0).sum()


def test_a_mean_of_means_would_be_seen(run, packed, whole, gpt2):
    """The same test, of a loss that divides too early."""

    def mean(params, batch, key):
        total, metrics = clm(gpt2, label_smoothing=0.1, z_loss=1e-3)(params, batch, key)
        return Weighted(total.sum / jnp.maximum(total.weight, 1), jnp.float32(1)), metrics

    loss, _, grads = run(packed, 4, loss=mean)
    assert abs(loss - whole[0]) > 1000 * TOLERANCE * whole[0]
    assert difference(grads, whole[2]) > 1000 * TOLERANCE


def test_rows_that_do_not_divide_are_named(run, packed):
    with pytest.raises(ValueError, match="8 rows do not divide into 3"):
        run(packed, 3)


def test_rows_that_do_not_divide_over_devices_are_named(on_mesh, packed):
    six = {name: rows[:6] for name, rows in packed.items()}
    with on_mesh((4, 1, 1)), pytest.raises(ValueError, match="6 rows does not divide over 4"):
        mesh.shard_batch(six)
