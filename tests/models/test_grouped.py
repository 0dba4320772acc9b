"""Products of rows with the weights of their own experts."""

import functools

import jax
import jax.numpy as jnp
import numpy as np

from llmjax import mesh
from llmjax.models import grouped


def test_one_expert_on_a_tpu(monkeypatch):
    """Its rows, and zeros after them; gradients too."""
    random = np.random.default_rng(3)
    rows, weight = (random.normal(size=size).astype(np.float32) for size in ((7, 8), (1, 8, 6)))
    plan = grouped.plan(jnp.asarray([[0], [1], [0], [1], [0], [0], [1]]), 1, 1)
    monkeypatch.setattr(mesh, "platform", lambda: "tpu")

    def total(rows, weight):
        out = grouped.product(rows, weight, plan, "ragged", (None, None, None))
        return jnp.sum(jnp.sin(out)), out

    (_, out), gradients = jax.value_and_grad(total, (0, 1), has_aux=True)(rows, weight)
    counted = np.arange(7)[:, None] < 4
    expected = np.where(counted, rows @ weight[0], 0)
    slopes = np.where(counted, np.cos(expected), 0)
    jax.tree.map(
        functools.partial(np.testing.assert_allclose, rtol=1e-5, atol=1e-5),
        (out, gradients),
        (expected, (slopes @ weight[0].T, (rows.T @ slopes)[None])),
    )
