"""Paths, partition and stacking of parameter trees."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from llmjax import tree as trees
from llmjax.weights import Lora


def example():
    lora = Lora(jnp.ones((2, 3)), jnp.ones((2, 1)), jnp.zeros((1, 3)), 0.5)
    return {"layers": {"query": lora, "bias": jnp.arange(3.0)}, "embedding": jnp.ones((4, 2))}


def test_paths_are_in_the_order_of_leaves_and_go_into_leaf_types():
    assert trees.paths(example()) == [
        "embedding",
        "layers/bias",
        "layers/query/base",
        "layers/query/a",
        "layers/query/b",
    ]


def test_hashes_of_paths_never_change():
    """Initial values hang on them, across processes and versions."""
    assert trees.path_hash("layers/attention/query") == 2055993764
    assert 0 <= trees.path_hash("") < 2**31


@pytest.mark.parametrize("pattern", [r"query/[ab]$", "bias", "nothing", ""])
def test_combine_inverts_partition(pattern):
    tree = example()
    picked, others = trees.partition(tree, trees.matches(pattern))
    assert set(trees.paths(picked)).isdisjoint(trees.paths(others))
    assert set(trees.paths(picked)) == {
        p for p in trees.paths(tree) if trees.matches(pattern)(p, 0)
    }
    for first, second in ((picked, others), (others, picked)):
        combined = trees.combine(first, second)
        assert jax.tree.structure(combined) == jax.tree.structure(tree)
        jax.tree.map(np.testing.assert_array_equal, combined, tree)


def test_only_the_picked_half_is_differentiated():
    picked, others = trees.partition(example(), trees.matches("embedding"))

    def total(picked):
        tree = trees.combine(picked, others)
        return jnp.sum(tree["embedding"] ** 2) + jnp.sum(tree["layers"]["bias"])

    grads = jax.grad(total)(picked)
    assert trees.paths(grads) == ["embedding"]
    np.testing.assert_array_equal(grads["embedding"], 2 * np.ones((4, 2)))


def test_cast_leaves_integers_alone():
    tree = {"x": jnp.ones(2), "n": jnp.arange(2)}
    cast = trees.cast(tree, jnp.bfloat16)
    assert (cast["x"].dtype, cast["n"].dtype) == (jnp.bfloat16, jnp.int32)


def test_stack_inverts_unstack_with_gradients():
    tree = {"w": jnp.arange(12.0).reshape(3, 2, 2), "b": jnp.arange(3.0)}
    layers = trees.unstack(tree)
    assert len(layers) == 3
    np.testing.assert_array_equal(layers[1]["w"], tree["w"][1])
    jax.tree.map(np.testing.assert_array_equal, trees.stack(layers), tree)

    def total(tree):
        return sum(index * jnp.sum(layer["w"]) for index, layer in enumerate(trees.unstack(tree)))

    np.testing.assert_array_equal(
        jax.grad(total)(tree)["w"], np.broadcast_to(np.arange(3.0)[:, None, None], (3, 2, 2))
    )


def test_nothing_cannot_be_unstacked():
    with pytest.raises(ValueError, match="at least one array"):
        trees.unstack({})
