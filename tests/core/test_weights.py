"""Every kind of weight multiplies as the array that it stands for."""

import statistics

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from llmjax import models
from llmjax import tree as trees
from llmjax.objectives import clm
from llmjax.weights import (
    Dora,
    Int8,
    Lora,
    Scaled,
    einsum,
    materialize,
    norms,
    quantize,
    quantize_nf4,
    scaled_bias,
    transpose,
)
from llmjax.weights.quantized import NORMAL_FLOAT

SIZES = {"b": 2, "s": 3, "d": 64, "h": 2, "c": 32, "f": 64, "v": 5}

# Equation, and how many leading axes of the weight are its inputs.
EQUATIONS = {"bsd,dhc->bshc": 1, "bshc,hcd->bsd": 2, "bsd,df->bsf": 1, "bsd,df->bfs": 1}


def array(axes, seed=0):
    random = np.random.RandomState(seed)
    return jnp.asarray(random.randn(*(SIZES.get(axis, axis) for axis in axes)), jnp.float32)


def lora(axes, inputs, base, rank=3):
    a = array([*axes[:inputs], rank], 1)
    return Lora(base, a, array([rank, *axes[inputs:]], 2), 0.5)


def dora(axes, inputs):
    shape = [1] * inputs + [SIZES[axis] for axis in axes[inputs:]]
    return Dora(lora(axes, inputs, array(axes)), 1 + jnp.abs(array(shape, 5)))


def scaled(axes, inputs, over):
    shape = [SIZES[a] if (i < inputs) == (over == "inputs") else 1 for i, a in enumerate(axes)]
    return Scaled(array(axes), array(shape, 5), over)


KINDS = {
    "array": lambda axes, inputs: array(axes),
    "int8": lambda axes, inputs: quantize(array(axes), inputs),
    "lora": lambda axes, inputs: lora(axes, inputs, array(axes)),
    "lora over int8": lambda axes, inputs: lora(axes, inputs, quantize(array(axes), inputs)),
    "dora": dora,
    "scaled inputs": lambda axes, inputs: scaled(axes, inputs, "inputs"),
    "scaled outputs": lambda axes, inputs: scaled(axes, inputs, "outputs"),
    "nf4": lambda axes, inputs: quantize_nf4(array(axes)),
    "lora over nf4": lambda axes, inputs: lora(axes, inputs, quantize_nf4(array(axes))),
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


@pytest.mark.parametrize("base", ["array", "int8"])
def test_a_table_contracts_its_columns(base):
    """Of a low-rank correction too, whose rows are those of the vocabulary."""
    table = array("vd") if base == "array" else quantize(array("vd"), 1)
    weight, x = lora("vd", 1, table), array("bsd", 3)
    expected = x @ (materialize(table) + 0.5 * weight.a @ weight.b).T
    actual = einsum("bsd,vd->bsv", x, weight, (None,) * 3)
    np.testing.assert_allclose(actual, expected, rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize("inputs", [1, 2])
def test_stacked_corrections_are_those_of_each_layer(inputs):
    """Of layers and experts, in any number, beside rows and columns of several axes."""
    shape = (3, 2, 4, 5, 6)  # layers, experts, and the weight
    base, a = array(shape), array([*shape[: 2 + inputs], 7], 1)
    b = array([3, 2, 7, *shape[2 + inputs :]], 2)
    found = materialize(Lora(base, a, b, 0.5))
    for layer, expert in np.ndindex(3, 2):
        flat = a[layer, expert].reshape(-1, 7) @ b[layer, expert].reshape(7, -1)
        expected = base[layer, expert] + 0.5 * flat.reshape(4, 5, 6)
        np.testing.assert_allclose(found[layer, expert], expected, rtol=1e-5, atol=1e-5)


def test_magnitudes_are_the_norms_of_columns():
    weight = dora("hcd", 2)
    sizes = np.linalg.norm(np.asarray(materialize(weight)).reshape(-1, SIZES["d"]), axis=0)
    np.testing.assert_allclose(sizes, weight.magnitude[0, 0], rtol=1e-5)


def test_a_column_of_zeros_has_a_direction_of_zeros():
    """With the magnitude that it starts with; neither value nor gradient is NaN."""
    base = array("df").at[:, 0].set(0.0)
    low = lora("df", 1, base).replace(b=jnp.zeros((3, SIZES["f"])))
    x, weight = array("bsd", 3), Dora(low, norms(low))

    def total(weight):
        out = einsum("bsd,df->bsf", x, weight, (None,) * 3)
        return jnp.sum(out), out

    grads, out = jax.grad(total, has_aux=True)(weight)
    np.testing.assert_allclose(out, x @ base, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(materialize(weight), base, rtol=1e-6)
    assert all(np.all(np.isfinite(leaf)) for leaf in jax.tree.leaves(grads))


def test_factors_of_outputs_scale_the_bias():
    weight, bias = scaled("dhc", 1, "outputs"), array("hc", 6)
    np.testing.assert_array_equal(scaled_bias(weight, bias), bias * weight.factors[0])
    np.testing.assert_array_equal(scaled_bias(scaled("df", 1, "inputs"), bias), bias)


def test_head_contracts_the_last_axis():
    x, table = array("bsd"), array("vd", 1)
    np.testing.assert_allclose(
        einsum("bsd,vd->bsv", x, table, (None,) * 3), x @ table.T, rtol=1e-5, atol=1e-6
    )


@pytest.mark.parametrize("kind", KINDS)
def test_products_are_in_the_precision_of_the_activations(kind):
    x = array("bsd").astype(jnp.bfloat16)
    assert einsum("bsd,df->bsf", x, KINDS[kind]("df", 1), (None,) * 3).dtype == jnp.bfloat16


@pytest.mark.parametrize("kind", KINDS)
def test_wide_products_are_not_rounded(kind):
    """Whatever the weight is made of: only its factors and inner activations are."""
    x, weight = array("bsd").astype(jnp.bfloat16), KINDS[kind]("df", 1)
    found = einsum("bsd,df->bsf", x, weight, ("batch", None, None), wide=True)
    assert found.dtype == jnp.float32
    again = found.astype(jnp.bfloat16).astype(jnp.float32)
    assert np.mean(np.asarray(found != again)) > 0.9


@pytest.mark.parametrize("kind", ["array", "transposed", "lora"])
def test_wide_sums_are_not_rounded(kind):
    """Of bfloat16 factors, in float32; the gradient is in the precision of the activations."""
    x, plain = array("bsd").astype(jnp.bfloat16), array("df")
    weight = {
        "array": plain,
        "transposed": transpose(plain, (0,)),
        "lora": lora("df", 1, plain).replace(b=jnp.zeros((3, SIZES["f"]))),
    }[kind]

    def total(x, wide):
        out = einsum("bsd,df->bsf", x, weight, ("batch", None, None), wide=wide)
        return jnp.sum(out.astype(jnp.float32) * array("bsf", 3)), out

    gradient = jax.grad(total, has_aux=True)
    (slope, found), (narrow, rounded) = gradient(x, True), gradient(x, False)
    factors = (np.asarray(y.astype(jnp.bfloat16), np.float64) for y in (x, plain))
    expected = np.einsum("bsd,df->bsf", *factors)
    assert found.dtype == jnp.float32
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5)
    assert np.abs(np.asarray(rounded, np.float64) - expected).max() > 1e-2
    assert slope.dtype == narrow.dtype == jnp.bfloat16
    slope, narrow = (np.asarray(y, np.float32) for y in (slope, narrow))
    np.testing.assert_allclose(slope, narrow, rtol=0.02, atol=0.2)


@pytest.mark.parametrize(("axes", "inputs"), [("df", 1), ("hcd", 2)])
def test_int8_rounds_to_half_a_unit_of_its_channel(axes, inputs):
    weight = array(axes).at[..., 0].set(0.0)
    rounded = quantize(weight, inputs)
    assert rounded.values.dtype == jnp.int8
    assert rounded.scale.size == weight.size // np.prod(weight.shape[:inputs])
    error = np.abs(materialize(rounded) - weight)
    assert np.all(error <= 0.5001 * rounded.scale)
    assert np.all(np.isfinite(materialize(rounded)))
    with jax.debug_nans(True):
        quantize(weight, inputs)


def test_normal_floats_are_the_quantiles_of_the_paper():
    """Dettmers et al. 2023, appendix E: of both halves, which share the 0, less the infinities."""
    offset = 1 - (1 / 30 + 1 / 32) / 2
    quantile = statistics.NormalDist().inv_cdf
    upper = [quantile(p) for p in np.linspace(offset, 0.5, 9)[:-1]]
    lower = [-quantile(p) for p in np.linspace(offset, 0.5, 8)[:-1]]
    expected = np.sort([*upper, 0.0, *lower]) / max(upper)
    np.testing.assert_allclose(NORMAL_FLOAT, expected, atol=2e-7)


@pytest.mark.parametrize("shape", [(3, 512, 128), (2, 8, 6, 32)])
def test_nf4_finds_the_nearest_value_of_its_block(shape):
    weight = array(shape)
    rounded = quantize_nf4(weight, 1)
    found = np.asarray(materialize(rounded)).reshape(-1, 64)
    blocks = np.asarray(weight).reshape(-1, 64)
    largest = np.abs(blocks).max(1, keepdims=True)
    values = largest * np.array(NORMAL_FLOAT)
    best = np.abs(blocks[..., None] - values[:, None]).min(-1)
    # What rounding the scales adds: half a step of 8 bits of their range.
    slack = (largest.max() - largest.min()) / 127
    assert np.all(np.abs(found - blocks) <= best + slack)
    share = sum(leaf.nbytes for leaf in jax.tree.leaves(rounded)) / weight.nbytes
    assert share < (0.13 if shape[1] >= 256 else 0.14)


def test_nf4_says_what_does_not_fit():
    with pytest.raises(ValueError, match=r"\(4, 6\): 4 bits need blocks of 64"):
        quantize_nf4(jnp.zeros((4, 6)))


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
        lambda leaf: materialize(leaf) if is_kind(leaf) else leaf, params, is_leaf=is_kind
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
