"""How a model is run changes nothing: layers in a loop or not, what is remembered, Auto meshes."""

import dataclasses

import jax
import numpy as np
import pytest

from llmjax import mesh, models
from llmjax import tree as trees
from llmjax.objectives import clm


def value_and_grad(config, params, batch, key=None):
    loss = clm(config)
    return jax.jit(jax.value_and_grad(lambda p, b: loss(p, b, key)[0].sum))(params, batch)


def assert_same(actual, expected):
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5), actual, expected
    )


@pytest.fixture(scope="module")
def model(llama, draw):
    dropout = models.Dropout(embedding=0.1, attention=0.1, hidden=0.1)
    config = dataclasses.replace(llama, dropout=dropout)
    return config, draw(models.spec(config))


@pytest.fixture(scope="module")
def expected(model, packed):
    return value_and_grad(*model, packed, jax.random.key(1))


@pytest.mark.parametrize(
    ("remat", "scan"), [("none", False), ("dots", True), ("full", True), ("full", False)]
)
def test_loops_and_rematerialisation_change_nothing(remat, scan, model, packed, expected):
    """With dropout: what is computed again must drop the same."""
    config, params = model
    config = dataclasses.replace(config, remat=remat, scan_layers=scan)
    assert_same(value_and_grad(config, params, packed, jax.random.key(1)), expected)


def test_a_list_of_layers_equals_the_stack(model, packed, expected):
    config, params = model
    unstacked = params | {"layers": trees.unstack(params["layers"])}
    loss, grads = value_and_grad(config, unstacked, packed, jax.random.key(1))
    assert_same((loss, grads | {"layers": trees.stack(grads["layers"])}), expected)


def test_host_arrays_without_jit_or_mesh(llama, draw, packed):
    """A notebook's way: numpy in, numbers out."""
    params = draw(models.spec(llama))
    total, metrics = clm(llama)(params, packed, None)
    np.testing.assert_allclose(total.sum, value_and_grad(llama, params, packed)[0], rtol=1e-5)
    assert (total.weight, metrics) == ((packed["targets"] >= 0).sum(), {})


def test_auto_mesh_equals_no_mesh(llama, draw, packed):
    """Where the compiler decides (AxisType.Auto), constraints say the same."""
    params = draw(models.spec(llama))
    expected = value_and_grad(llama, params, packed)
    made = mesh.make_mesh(mesh.MeshConfig(2, 2, 2))
    kinds = (jax.sharding.AxisType.Auto,) * len(mesh.AXES)
    with jax.set_mesh(jax.sharding.Mesh(made.devices, mesh.AXES, axis_types=kinds)):
        loss, grads = value_and_grad(llama, params, mesh.shard_batch(packed))
        assert_same(jax.device_get((loss, grads)), expected)


def test_bfloat16_computes_near_float32(llama, draw, packed):
    """Parameters and their gradients stay float32."""
    params = draw(models.spec(llama))
    exact, _ = value_and_grad(llama, params, packed)
    half = dataclasses.replace(llama, dtype="bfloat16")
    loss, grads = value_and_grad(half, params, packed)
    np.testing.assert_allclose(loss, exact, rtol=0.01)
    assert {leaf.dtype for leaf in jax.tree.leaves(grads)} == {np.dtype(np.float32)}
