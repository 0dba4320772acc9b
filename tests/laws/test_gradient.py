"""The gradient of the whole model's loss is the slope of the loss, in float64."""

import dataclasses

import jax
import numpy as np
import pytest

from llmjax import models
from llmjax import tree as trees
from llmjax.objectives import clm

STEP = 1e-5


@pytest.mark.parametrize("family", ["gpt2", "llama"])
@pytest.mark.parametrize("remat", ["none", "full"])
def test_gradient_against_finite_differences(family, remat, request, draw, packed):
    """Along a random direction for each parameter alone, so that none hides behind the others."""
    small = dataclasses.replace(
        request.getfixturevalue(family),
        dtype="float64",
        remat=remat,
        dropout=models.Dropout(embedding=0.1, attention=0.1, hidden=0.1),
    )
    objective = clm(small, label_smoothing=0.1, z_loss=1e-3)
    random = np.random.RandomState(3)
    with jax.enable_x64(True):
        params = jax.tree.map(np.float64, draw(models.spec(small)))
        key = jax.random.key(2)
        loss = jax.jit(lambda params: objective(params, packed, key)[0].sum)
        grads = jax.jit(jax.grad(loss))(params)
        for path in trees.paths(params):
            direction = random.randn(*_leaf(params, path).shape)

            def along(amount, path=path, direction=direction):
                def move(here, leaf):
                    return leaf + amount * direction if here == path else leaf

                return float(loss(trees.map_with_path(move, params)))

            slope = (along(STEP) - along(-STEP)) / (2 * STEP)
            gradient = np.vdot(_leaf(grads, path), direction)
            np.testing.assert_allclose(gradient, slope, rtol=1e-6, atol=1e-6, err_msg=path)


def _leaf(tree, path):
    for name in path.split("/"):
        tree = tree[name]
    return tree
