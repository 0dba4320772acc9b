"""AdamW and Muon: whom they treat how, against plain numpy, and the laws of every optimizer."""

import math
from contextlib import nullcontext

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from llmjax import mesh, models, optim
from llmjax import tree as trees
from llmjax.optim.muon import ADAM_RMS, orthogonalize
from llmjax.spec import Param, map_params

NAMES = ["adamw", "muon"]
CONSTANT = {"schedule": "constant", "warmup_steps": 0}


def tiny_spec():
    """Two layers of a matrix and a bias, and an embedding."""
    return {
        "layers": {
            "up": Param((2, 8, 4), ("layers", "embed", "mlp"), None, inputs=1),
            "up_bias": Param((2, 4), ("layers", "mlp"), None),
        },
        "embedding": Param((16, 8), ("vocab", "embed"), None),
    }


def moved(config, spec, params, grads):
    """What one update adds to each parameter, by path."""
    optimizer = optim.make(config, spec, 10)

    @jax.jit
    def update(params, grads):
        return optimizer.update(grads, optimizer.init(params), params)[0]

    updates = update(params, grads)
    return dict(zip(trees.paths(updates), jax.device_get(jax.tree.leaves(updates)), strict=True))


DECAYED = {
    "gpt2": {
        *(f"layers/attention/{name}" for name in ("query", "key", "value", "out")),
        *(f"layers/mlp/{name}" for name in ("up", "down")),
    },
    "llama": {
        *(f"layers/attention/{name}" for name in ("query", "key", "value", "out")),
        *(f"layers/mlp/{name}" for name in ("gate", "up", "down")),
        "head",
    },
}


@pytest.mark.parametrize("family", ["gpt2", "llama"])
@pytest.mark.parametrize("name", NAMES)
def test_decayed_are_matrices_and_not_norms_biases_and_embeddings(name, family, request, draw):
    """With no gradient, decay alone moves parameters: by rate times decay times themselves."""
    spec = models.spec(request.getfixturevalue(family))
    params = draw(spec)
    config = optim.OptimizerConfig(name, learning_rate=0.1, weight_decay=0.5, **CONSTANT)
    updates = moved(config, spec, params, jax.tree.map(np.zeros_like, params))
    assert {path for path, update in updates.items() if np.any(update)} == DECAYED[family]
    leaves = dict(zip(trees.paths(params), jax.tree.leaves(params), strict=True))
    for path in DECAYED[family]:
        np.testing.assert_allclose(updates[path], -0.05 * leaves[path], rtol=1e-5, atol=1e-8)


def test_who_decays_is_the_users_choice(draw):
    config = optim.OptimizerConfig(
        decays=(optim.Rule("layers/", 0.0),), weight_decay=0.5, **CONSTANT
    )
    params = draw(tiny_spec())
    updates = moved(config, tiny_spec(), params, jax.tree.map(np.zeros_like, params))
    assert {path for path, update in updates.items() if np.any(update)} == {"embedding"}


def test_adamw_equals_numpy(draw):
    """Three steps of Loshchilov & Hutter's algorithm 2, clipping before, the schedule after."""
    spec = tiny_spec()
    params = draw(spec)
    random = np.random.RandomState(0)
    grads = [jax.tree.map(lambda x: random.randn(*x.shape).astype(np.float32), params)] * 3
    config = optim.OptimizerConfig(
        learning_rate=0.1, schedule="linear", warmup_steps=1, final_share=0.0, weight_decay=0.3,
        beta1=0.8, beta2=0.9, epsilon=1e-2, clip_norm=2.0,
    )  # fmt: skip
    optimizer = optim.make(config, spec, 5)

    @jax.jit
    def step(params, state, grads):
        updates, state = optimizer.update(grads, state, params)
        return optax.apply_updates(params, updates), state

    ours, state = params, optimizer.init(params)
    for gradient in grads:
        ours, state = step(ours, state, gradient)

    decay = {"embedding": 0.0, "layers/up": 0.3, "layers/up_bias": 0.0}
    norm = np.sqrt(sum(np.sum(g.astype(float) ** 2) for g in jax.tree.leaves(grads[0])))
    for path, start, final, gradient in zip(
        trees.paths(params), *(jax.tree.leaves(tree) for tree in (params, ours, grads[0])),
        strict=True,
    ):  # fmt: skip
        theta, first, second = start.astype(float), 0.0, 0.0
        clipped = gradient * min(1.0, 2.0 / norm)
        for count, rate in enumerate([0.0, 0.1, 0.075], 1):
            first = 0.8 * first + 0.2 * clipped
            second = 0.9 * second + 0.1 * clipped**2
            direction = (first / (1 - 0.8**count)) / (np.sqrt(second / (1 - 0.9**count)) + 1e-2)
            theta = theta - rate * (direction + decay[path] * theta)
        np.testing.assert_allclose(final, theta, rtol=1e-5, atol=1e-6, err_msg=path)


@pytest.mark.parametrize("name", NAMES)
def test_moments_decay_in_float32_even_of_bfloat16_parameters(name):
    """Gradients of 1 for 300 steps and of 0 for 1000. In bfloat16, 0.999 times v would be v."""
    spec = tiny_spec()
    params = map_params(lambda param: jnp.ones(param.shape, jnp.bfloat16), spec)
    config = optim.OptimizerConfig(name, beta2=0.999, clip_norm=0.0, **CONSTANT)
    optimizer = optim.make(config, spec, 1300)

    def step(state, gradient):
        grads = jax.tree.map(lambda x: jnp.full_like(x, gradient), params)
        return optimizer.update(grads, state, params)[1], None

    gradients = jnp.where(jnp.arange(1300) < 300, 1.0, 0.0)
    state, _ = jax.jit(lambda state: jax.lax.scan(step, state, gradients))(optimizer.init(params))
    squares = optax.tree.get(state, "nu")["embedding"]
    np.testing.assert_allclose(squares, (1 - 0.999**300) * 0.999**1000, rtol=1e-4)
    leaves = jax.tree.leaves(state)
    assert {leaf.dtype for leaf in leaves if leaf.ndim} == {jnp.dtype(np.float32)}


@pytest.mark.parametrize(("clip_norm", "factor"), [(1.0, 1 / 5), (10.0, 1.0), (0.0, 1.0)])
def test_clipping_is_by_the_norm_of_the_whole_gradient(clip_norm, factor):
    """Adam hides the gradient's size, but its first moment does not. The norm here is 5."""
    spec = {"a": Param((1,), (None,), None), "b": Param((1,), (None,), None)}
    grads = {"a": jnp.array([3.0]), "b": jnp.array([4.0])}
    config = optim.OptimizerConfig(beta1=0.5, clip_norm=clip_norm)
    optimizer = optim.make(config, spec, 200)
    _, state = optimizer.update(grads, optimizer.init(grads), grads)
    mean = optax.tree.get(state, "mu")
    np.testing.assert_allclose([mean["a"], mean["b"]], [[1.5 * factor], [2 * factor]], rtol=1e-6)


@pytest.mark.parametrize("shape", [(3, 16, 16), (2, 8, 40), (2, 40, 8), (1, 1, 5)])
def test_orthogonalised_singular_values_are_near_1(shape):
    """And the singular vectors stay: the result is near U Vᵀ. (Values near 0 would take longer.)"""
    matrices = np.random.RandomState(1).randn(*shape)
    left, _, right = np.linalg.svd(matrices, full_matrices=False)
    spectrum = np.geomspace(20, 1, min(shape[1:]))
    matrices = (left * spectrum @ right).astype(np.float32)
    result = np.asarray(jax.jit(orthogonalize)(matrices))
    values = np.linalg.svd(result, compute_uv=False)
    assert values.min() > 0.6
    assert values.max() < 1.25
    rotated = np.swapaxes(left, 1, 2) @ result @ np.swapaxes(right, 1, 2)
    off_diagonal = rotated - rotated * np.eye(rotated.shape[1])
    assert np.abs(off_diagonal).max() < 1e-4


@pytest.mark.parametrize(
    ("shape", "axes", "sizes"),
    [
        ((2, 12, 3, 4), ("layers", "embed", "heads", None), {}),
        ((2, 4, 8, 12), ("layers", "experts", "expert_embed", "mlp"), {}),
        (
            (2, 4, 8, 12),
            ("layers", "experts", "expert_embed", "mlp"),
            {"data": 1, "stage": 2, "expert": 2, "tensor": 2},
        ),
    ],
)
def test_muons_first_direction_is_optaxs(shape, axes, sizes):
    """For each layer and expert alone, and for flat and split matrices alike."""
    random = np.random.RandomState(2)
    gradient = random.randn(*shape).astype(np.float32)
    param = Param(shape, axes, None, inputs=1)
    spec, tree = {"layers": {"one": param}}, {"layers": {"one": gradient}}
    config = optim.OptimizerConfig("muon", learning_rate=0.1, weight_decay=0.0, **CONSTANT)
    with jax.set_mesh(mesh.make_mesh(mesh.MeshConfig(**sizes))) if sizes else nullcontext():
        placed = jax.device_put(tree, {"layers": {"one": mesh.named_sharding(axes)}})
        update = moved(config, spec, placed, placed)["layers/one"]
    stack = math.prod(shape[: param.stacked])
    theirs = optax.contrib.scale_by_muon(nesterov=True)
    pairs = (x.reshape(stack, shape[param.stacked], -1) for x in (gradient, update))
    for matrix, ours in zip(*pairs, strict=True):
        direction, _ = theirs.update(matrix, theirs.init(matrix), matrix)
        expected = -0.1 * ADAM_RMS * 12**0.5 * np.asarray(direction)
        np.testing.assert_allclose(ours, expected, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_muon_takes_the_matrices_of_the_layers(family, request, draw):
    """They, and only they, move by orthogonal matrices, whose shape is width by all the rest."""
    spec = models.spec(request.getfixturevalue(family))
    params = draw(spec)
    random = np.random.RandomState(3)
    grads = jax.tree.map(lambda x: random.randn(*x.shape).astype(np.float32), params)
    config = optim.OptimizerConfig("muon", learning_rate=1.0, weight_decay=0.0, **CONSTANT)
    updates = moved(config, spec, params, grads)
    for path, update in updates.items():
        if path in DECAYED[family] - {"head"}:
            into = path.endswith(("out", "down"))
            shape = (2, -1, 16) if into else (2, 16, -1)
            matrices = update.reshape(shape)
            values = np.linalg.svd(matrices, compute_uv=False)
            values /= ADAM_RMS * max(matrices.shape[1:]) ** 0.5
            # A random square matrix has a singular value or two that are nearly 0.
            assert np.quantile(values, 0.25) > 0.6
            assert values.max() < 1.25
        else:
            # Adam's first step is the rate in the gradient's direction.
            np.testing.assert_allclose(np.abs(update), 1.0, rtol=1e-2, err_msg=path)


@pytest.mark.parametrize("name", NAMES)
def test_converges_on_a_quadratic_and_compiles_once(name, draw, compilations):
    spec = tiny_spec()
    target = draw(spec)
    config = optim.OptimizerConfig(name, learning_rate=0.05, warmup_steps=5, weight_decay=0.0)
    optimizer = optim.make(config, spec, 150)

    def loss(params):
        return optax.tree.norm(jax.tree.map(jnp.subtract, params, target), squared=True)

    @jax.jit
    def step(params, state):
        value, grads = jax.value_and_grad(loss)(params)
        updates, state = optimizer.update(grads, state, params)
        return optax.apply_updates(params, updates), state, value

    params = jax.tree.map(jnp.zeros_like, target)
    state = optimizer.init(params)
    params, state, first = step(params, state)
    before = len(compilations)
    for _ in range(149):
        params, state, last = step(params, state)
    assert len(compilations) == before
    assert last < 0.01 * first


@pytest.mark.parametrize("name", NAMES)
def test_state_and_updates_lie_as_the_parameters_do(name, draw):
    spec = tiny_spec()
    optimizer = optim.make(optim.OptimizerConfig(name), spec, 200)
    with jax.set_mesh(mesh.make_mesh(mesh.MeshConfig(data=2, fsdp=2, tensor=2))):
        shardings = map_params(lambda param: mesh.named_sharding(param.axes), spec)
        params = jax.device_put(draw(spec), shardings)
        state = jax.jit(optimizer.init)(params)
        updates, state = jax.jit(optimizer.update)(params, state, params)
        specs = {leaf.shape: leaf.sharding.spec for leaf in jax.tree.leaves(params)}
        for leaf in jax.tree.leaves((updates, state)):
            if leaf.ndim:
                assert leaf.sharding.spec == specs[leaf.shape]
