"""One declaration, many derivations."""

import contextlib
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.nn import initializers

from llmjax import mesh, models
from llmjax import spec as specs
from llmjax import tree as trees
from llmjax.spec import Param

NORMAL = initializers.normal(0.5)


def small_spec(**more):
    return {
        "embedding": Param((64, 16), ("vocab", "embed"), NORMAL),
        "layers": {"up": Param((16, 32), ("embed", "mlp"), NORMAL).stack(3)},
        "scale": Param((16,), (None,), initializers.ones),
    } | more


@pytest.fixture(scope="module")
def drawn():
    return jax.device_get(specs.init(jax.random.key(0), small_spec()))


@pytest.mark.parametrize("sizes", [(2, 2, 2), (1, 8, 1)])
def test_initial_values_do_not_depend_on_the_mesh(sizes, drawn):
    with jax.set_mesh(mesh.make_mesh(mesh.MeshConfig(*sizes))):
        params = specs.init(jax.random.key(0), small_spec())
    jax.tree.map(np.testing.assert_array_equal, jax.device_get(params), drawn)


def test_parameters_are_split_from_birth_and_typed_by_it():
    with jax.set_mesh(mesh.make_mesh(mesh.MeshConfig(2, 2, 2))):
        up = specs.init(jax.random.key(0), small_spec())["layers"]["up"]
    assert up.sharding.spec == jax.P(None, "fsdp", "tensor")
    assert {shard.data.shape for shard in up.addressable_shards} == {(3, 8, 16)}


def test_another_parameter_leaves_the_others_as_they_were(drawn):
    changed = small_spec(embedding=Param((8, 4), (None, None), NORMAL))
    changed["adapter"] = Param((16, 2), ("embed", None), NORMAL)
    params = specs.init(jax.random.key(0), changed)
    np.testing.assert_array_equal(params["layers"]["up"], drawn["layers"]["up"])
    assert params["embedding"].shape == (8, 4)


def test_keys_and_paths_give_different_values(drawn):
    twins = {name: Param((64,), (None,), NORMAL) for name in ("a", "b")}
    params = specs.init(jax.random.key(0), twins)
    assert not np.any(np.asarray(params["a"]) == np.asarray(params["b"]))
    again = specs.init(jax.random.key(1), small_spec())
    assert not np.any(np.asarray(again["embedding"]) == drawn["embedding"])


def test_stacked_layers_are_drawn_alone(drawn):
    """Each from the weight's own distribution: fan-in is that of a layer, and none repeats."""
    layers = drawn["layers"]["up"]
    assert len(np.unique(layers)) > 0.99 * layers.size
    fan_in = Param((100, 50), (None, None), initializers.lecun_normal()).stack(4)
    values = specs.init(jax.random.key(0), {"w": fan_in})["w"]
    np.testing.assert_allclose(np.std(values, axis=(1, 2)), 0.1, rtol=0.05)


@pytest.mark.parametrize("family", [models.gpt2, models.llama])
def test_initial_scales_of_a_model(family):
    """0.02, and 0.02 / sqrt(2 L) for the projections back into the residual stream."""
    config = family(vocab_size=100, num_layers=4, embed_dim=64, num_heads=4, max_length=32)
    params = specs.init(jax.random.key(0), models.spec(config))
    for path, leaf in zip(trees.paths(params), jax.tree.leaves(params), strict=True):
        name = path.split("/")[-1]
        if name == "scale":
            assert np.all(leaf == 1.0)
        elif name.endswith("bias"):
            assert not np.any(leaf)
        else:
            std = 0.02 / math.sqrt(8) if name in ("out", "down") else 0.02
            np.testing.assert_allclose(np.std(leaf), std, rtol=0.05, err_msg=path)
            assert abs(np.mean(leaf)) < 0.1 * std


@pytest.mark.parametrize("split", [False, True])
def test_abstract_and_initial_parameters_agree(split):
    a_mesh = jax.set_mesh(mesh.make_mesh(mesh.MeshConfig(2, 2, 2))) if split else None
    with a_mesh or contextlib.nullcontext():
        shapes = specs.abstract(small_spec(), jnp.bfloat16)
        params = specs.init(jax.random.key(0), small_spec(), jnp.bfloat16)

    def check(shape, param):
        assert (shape.shape, shape.dtype) == (param.shape, param.dtype)
        assert shape.sharding == (param.sharding if split else None)

    jax.tree.map(check, shapes, params)


def test_count_and_shardings():
    assert specs.count(small_spec()) == 64 * 16 + 3 * 16 * 32 + 16
    assert specs.shardings(small_spec())["layers"]["up"] == jax.P(
        "stage", ("fsdp", "context", "expert"), "tensor"
    )
    replicated = dict.fromkeys(mesh.RULES, ())
    assert specs.shardings(small_spec(), replicated)["embedding"] == jax.P(None, None)


def test_a_known_axis_for_each_dimension():
    with pytest.raises(ValueError, match="must name each dimension"):
        Param((2, 3), ("embed",), NORMAL)
    with pytest.raises(ValueError, match=r"unknown logical axes \['width'\]: choose from batch, "):
        Param((2, 3), ("width", None), NORMAL)


def test_a_weight_that_the_mesh_cannot_split_is_named(llama):
    four = mesh.make_mesh(mesh.MeshConfig(tensor=4), jax.devices()[:4])
    with (
        jax.set_mesh(four),
        pytest.raises(ValueError, match=r"layers/attention/key .*'kv_heads' of 2 .* 4 devices"),
    ):
        specs.init(jax.random.key(0), models.spec(llama))
