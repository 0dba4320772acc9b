"""Every kind of weight multiplies as the array that it stands for."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from llmjax import models
from llmjax import tree as trees
from llmjax.objectives import clm
from llmjax.weights import Int8, Lora, einsum, materialize, quantize, transpose

SIZES = {"b": 2, "s": 3, "d": 8, "h": 2, "c": 4, "f": 6, "v": 5}

# Equation, and how many leading axes of the weight are its inputs.
EQUATIONS = {"bsd,dhc->bshc": 1, "bshc,hcd->bsd": 2, "bsd,df->bsf": 1, "bsd,df->bfs": 1}


def array(axes, seed=0):
    random = np.random.RandomState(seed)
    return jnp.asarray(random.randn(*(SIZES.get(axis, axis) for axis in axes)), jnp.float32)


def lora(axes, inputs, base, rank=3):
    a = array([*axes[:inputs], rank], 1)
    return Lora(base, a, array([rank, *axes[inputs:]], 2), 0.5)


KINDS = {
    "array": lambda axes, inputs: array(axes),
    "int8": lambda axes, inputs: quantize(array(axes), inputs),
    "lora": lambda axes, inputs: lora(axes, inputs, array(axes)),
    "lora over int8": lambda axes, inputs: lora(axes, inputs, quantize(array(axes), inputs)),
    "transposed": lambda axes, inputs: transpose(array(axes), tuple(range(inputs))),
    "lora over transposed": lambda axes, inputs: lora(
        axes, inputs, transpose(array(axes), tuple(range(inputs)))
    ),
}


@pytest.mark.parametrize("equation", EQUATIONS)
@pytest.mark.parametrize("kind", KINDS)
def test_einsum_equals_that_of_the_materialised_weight(kind, equation):
    operands, result = equation.split("->")
    inputs, axes = operands.split(",")
    weight = KINDS[kind](axes, EQUATIONS[equation])
    x = array(inputs, 3)
    actual = einsum(equation, x, weight, (None,) * len(result))
    expected = jnp.einsum(equation, x, materialize(weight))
    np.testing.assert_allclose(actual, expected, rtol=1e-5, atol=1e-5)


def test_head_contracts_the_last_axis():
    x, table = array("bsd"), array("vd", 1)
    np.testing.assert_allclose(
        einsum("bsd,vd->bsv", x, table, (None,) * 3), x @ table.T, rtol=1e-5, atol=1e-6
    )


@pytest.mark.parametrize("kind", KINDS)
def test_products_are_in_the_precision_of_the_activations(kind):
    x = array("bsd").astype(jnp.bfloat16)
    assert einsum("bsd,df->bsf", x, KINDS[kind]("df", 1), (None,) * 3).dtype == jnp.bfloat16


@pytest.mark.parametrize(("axes", "inputs"), [("df", 1), ("hcd", 2)])
def test_int8_rounds_to_half_a_unit_of_its_channel(axes, inputs):
    weight = array(axes).at[..., 0].set(0.0)
    rounded = quantize(weight, inputs)
    assert rounded.values.dtype == jnp.int8
    assert rounded.scale.size == weight.size // np.prod(weight.shape[:inputs])
    error = np.abs(materialize(rounded) - weight)
    assert np.all(error <= 0.5001 * rounded.scale)
    assert np.all(np.isfinite(materialize(rounded)))


def test_lora_is_the_base_while_b_is_zero():
    weight = lora("df", 1, array("df"))
    weight = weight.replace(b=jnp.zeros_like(weight.b))
    x = array("bsd", 3)
    axes = (None,) * 3
    np.testing.assert_array_equal(
        einsum("bsd,df->bsf", x, weight, axes), einsum("bsd,df->bsf", x, weight.base, axes)
    )


def adapted(params):
    """Low-rank corrections over 8-bit weights for the queries and the MLP of stacked layers."""

    def over_int8(weight, seed):
        layers, width, *outputs = weight.shape
        a, b = array([layers, width, 2], seed), array([layers, 2, *outputs], seed + 1)
        return Lora(jax.vmap(quantize)(jnp.asarray(weight)), 0.1 * a, 0.1 * b, 2.0)

    layers = params["layers"]
    attention = layers["attention"] | {"query": over_int8(layers["attention"]["query"], 4)}
    mlp = layers["mlp"] | {"up": over_int8(layers["mlp"]["up"], 6)}
    return params | {"layers": layers | {"attention": attention, "mlp": mlp}}


def is_kind(leaf):
    return isinstance(leaf, Int8 | Lora)


def test_a_model_knows_nothing_of_the_kinds_of_its_weights(llama, draw, packed):
    """The same function on adapted and on materialised parameters, under the loop over layers."""
    params = adapted(draw(models.spec(llama)))
    merged = jax.tree.map(
        lambda leaf: jax.vmap(materialize)(leaf) if is_kind(leaf) else leaf, params, is_leaf=is_kind
    )
    loss = jax.jit(lambda params: clm(llama)(params, packed, None)[0].sum)
    np.testing.assert_allclose(loss(params), loss(merged), rtol=1e-5)


def test_gradients_reach_a_and_b_alone(llama, draw, packed):
    params = adapted(draw(models.spec(llama)))
    trained, frozen = trees.partition(params, trees.matches(r"(query|up)/[ab]$"))

    @jax.jit
    def grad(trained, frozen):
        def loss(trained):
            return clm(llama)(trees.combine(trained, frozen), packed, None)[0].sum

        return jax.grad(loss)(trained)

    grads = grad(trained, frozen)
    names = [f"layers/{place}/{leaf}" for place in ("attention/query", "mlp/up") for leaf in "ab"]
    assert trees.paths(grads) == names
    assert all(np.any(leaf) for leaf in jax.tree.leaves(grads))
