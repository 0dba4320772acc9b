"""Law 1: the loss and its gradient do not depend on how a batch is cut.

Micro-batches, accumulation and devices give one result, to the rounding of float32 sums, though
the rows have between 0 and 13 targets. A mean of means is off by far more.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from llmjax import mesh, models
from llmjax.objectives import (
    MaskingConfig,
    Weighted,
    classification,
    clm,
    generator_config,
    mlm,
    rtd,
    rtd_spec,
)
from llmjax.train import make_step
from tests.laws.recorder import RECORDER

TOLERANCE = 2e-6  # relative

# name: (micro-batches, devices by mesh axis)
CUTS = {
    "2 micro-batches": (2, None),
    "8 micro-batches": (8, None),
    "8 devices": (1, (8, 1, 1)),
    "4 micro-batches on 2 devices": (4, (2, 1, 1)),
    "2 micro-batches on 2 x 2 x 2 devices": (2, (2, 2, 2)),
}
HARDEST = "2 micro-batches on 2 x 2 x 2 devices"
DEFAULT = {"8 micro-batches", "4 micro-batches on 2 devices", HARDEST}
# Enough for losses that are cut as the others are, once they have drawn their masks.
FEWER_CUTS = (
    HARDEST,
    pytest.param("8 micro-batches", marks=pytest.mark.slow),
    pytest.param("4 micro-batches on 2 devices", marks=pytest.mark.slow),
)
HIDDEN = {"mask_id": 3, "special_ids": (0, 1, 2)}


@pytest.fixture(scope="module")
def run(gpt2, draw, on_mesh, start):
    """`run(batch, …)`: loss, number of targets and gradient of one step."""

    def once(batch, accumulate=1, sizes=None, loss=None, spec=None):
        spec = models.spec(gpt2) if spec is None else spec
        loss = clm(gpt2, label_smoothing=0.1, z_loss=1e-3) if loss is None else loss
        params = draw(spec)
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


@pytest.mark.parametrize(
    "cut",
    [pytest.param(cut, marks=() if cut in DEFAULT else pytest.mark.slow) for cut in CUTS],
)
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


def encoder(head, family=models.electra):
    sizes = {"vocab_size": 64, "num_layers": 1, "embed_dim": 16, "num_heads": 4, "max_length": 16}
    config = family(dropout=models.Dropout(), **sizes)
    return models.with_head(config, head)


@pytest.fixture(scope="module")
def masked(run, packed):
    """`masked(objective, cut)`: one step of mlm or rtd, whose rows have masks in unequal number."""
    masking = MaskingConfig(rate=0.4)
    discriminator = encoder("rtd")
    generator = generator_config(discriminator, 0.5)
    settings = {
        "mlm": (mlm(encoder("mlm"), masking, **HIDDEN), models.spec(encoder("mlm"))),
        "rtd": (
            rtd(generator, discriminator, masking, **HIDDEN),
            rtd_spec(generator, discriminator),
        ),
    }

    @functools.cache
    def once(objective, cut=None):
        accumulate, sizes = CUTS[cut] if cut else (1, None)
        loss, spec = settings[objective]
        return run(packed, accumulate, sizes, loss, spec)

    return once


@pytest.mark.parametrize("cut", FEWER_CUTS)
@pytest.mark.parametrize("objective", ["mlm", pytest.param("rtd", marks=pytest.mark.slow)])
def test_what_is_drawn_does_not_depend_on_the_cut(objective, cut, masked):
    """Masks and replacements are the step's, not the micro-batch's: another would be seen."""
    assert_same(masked(objective, cut), masked(objective))


@pytest.mark.parametrize("cut", FEWER_CUTS)
def test_labels_of_rows_are_cut_with_them(cut, run, packed):
    """An array [B] beside those [B, S]; a padded row has no label."""
    config = encoder("classification", models.bert)
    batch = packed | {"labels": np.array([0, 1, 1, -1, 0, 1, 0, -1], np.int32)}
    loss, spec = classification(config), models.spec(config)
    whole = run(batch, loss=loss, spec=spec)
    assert whole[1] == 6
    assert_same(run(batch, *CUTS[cut], loss, spec), whole)
