"""Weights gathered, and gradients scattered, by stages or not, as one device would have them."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P

from llmjax import collectives, mesh
from llmjax.parts import on_parts

# 8 devices exchange in stages of 4 and 2; 4 do at once.
MESHES = [mesh.MeshConfig(1, 8), mesh.MeshConfig(2, 4), mesh.MeshConfig(1, 4, 2)]


def array(*shape, seed=0):
    return np.random.RandomState(seed).randn(*shape).astype(np.float32)


@pytest.mark.parametrize("config", MESHES, ids=str)
@pytest.mark.parametrize("spec", [P("fsdp", "tensor"), P("tensor", "fsdp")], ids=str)
def test_gathered_is_the_whole_array(config, spec):
    x = array(16, 8)
    with jax.set_mesh(mesh.make_mesh(config)):
        placed = jax.device_put(x, spec)
        whole = jax.jit(lambda x: collectives.gathered(x, frozenset({"data", "fsdp"})))(placed)
        assert collectives.split(whole) == [
            tuple(name for name in (entry,) if name == "tensor") for entry in spec
        ]
    np.testing.assert_array_equal(whole, x)


@pytest.mark.parametrize("config", MESHES, ids=str)
@pytest.mark.parametrize("spec", [P("fsdp", "tensor"), P("tensor", "fsdp")], ids=str)
def test_a_sum_of_parts_lies_as_it_is_told(config, spec):
    """Aᵀ B over rows that data and fsdp split, B's or A's columns over tensor."""
    a, b = array(16, 16, seed=1), array(16, 8, seed=2)
    with jax.set_mesh(mesh.make_mesh(config)):
        rows = ("data", "fsdp")
        columns = ["tensor" if entry == "tensor" else None for entry in spec]
        parts = jax.device_put(a, P(rows, columns[0])), jax.device_put(b, P(rows, columns[1]))

        def run(*parts):
            return collectives.sum_of_parts(lambda a, b: a.T @ b, parts, frozenset(rows), spec)

        found = jax.jit(run)(*parts)
        assert collectives.split(found) == [(entry,) for entry in spec]
    np.testing.assert_allclose(found, a.T @ b, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("config", MESHES, ids=str)
def test_a_part_that_is_gathered_has_the_gradient_of_the_whole(config):
    x, weight = array(8, 4, 16), array(16, 16, seed=1)
    axes = ("batch", None, None), ("vocab", "embed")

    def logits(x, weight):
        return jnp.tanh(x @ collectives.gather(weight, (None, "embed")).T)

    with jax.set_mesh(mesh.make_mesh(config)):
        placed = [
            jax.device_put(value, mesh.named_sharding(names))
            for value, names in zip((x, weight), axes, strict=True)
        ]
        mapped = on_parts(logits, axes, ("batch", None, "vocab"))
        found = jax.jit(jax.grad(lambda x, w: jnp.sum(mapped(x, w) ** 2), (0, 1)))(*placed)
    expected = jax.grad(lambda x, w: jnp.sum(jnp.tanh(x @ w.T) ** 2), (0, 1))(x, weight)
    for one, other in zip(found, expected, strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-4)
