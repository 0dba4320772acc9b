"""Adapters: what is added to a frozen model, and what stays."""

import dataclasses
import re

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from llmjax import mesh, models, peft, spec, tree
from llmjax.models import Dropout
from llmjax.objectives import clm
from llmjax.peft import adapter
from llmjax.peft.adapter import AdapterConfig
from llmjax.train import zero
from tools.golden_models import CONFIGS

SMALL = AdapterConfig(4)


@pytest.fixture
def with_adapters(draw):
    """`with_adapters(config, wanted)`: declarations and parameters, no new one of which is 0."""

    def make(config, wanted=SMALL):
        declared = adapter.spec(models.spec(config), config, wanted)
        return declared, draw(declared)

    return make


# Norms before and behind; experts; a list of layers that differ; relative positions.
@pytest.mark.parametrize(
    ("family", "reads"),
    [("gemma2", "output"), ("qwen3_moe", "sum"), ("modernbert", "output"), ("deberta", "sum")],
)
def test_step_0_equals_the_base(family, reads, draw, assert_bitwise):
    config = CONFIGS[family]
    declared = adapter.spec(models.spec(config), config, AdapterConfig(4, reads=reads))

    def start(path, value):
        return 0 * value if path.endswith(("_adapter/up", "_adapter/up_bias")) else value

    params = tree.map_with_path(start, draw(declared))
    tokens = np.random.RandomState(0).randint(0, 48, (2, 8)).astype(np.int32)
    run = jax.jit(lambda params: models.apply(params, tokens, config)[0])
    assert_bitwise(run(params), run(draw(models.spec(config))))


def test_cached_decoding_equals_the_full_pass(with_adapters):
    config = CONFIGS["gemma2"]
    _, params = with_adapters(config)
    tokens = np.random.RandomState(0).randint(0, 48, (2, 8)).astype(np.int32)
    whole = jax.jit(lambda params: models.apply(params, tokens, config)[0])(params)
    ready, cache = models.for_decoding(params, config), models.empty_cache(config, 2, 8)
    run = jax.jit(lambda tokens, cache: models.apply(ready, tokens, config, cache=cache))
    found = []
    for part in (tokens[:, :6], tokens[:, 6:7], tokens[:, 7:]):
        hidden, cache = run(part, cache)
        found.append(hidden)
    np.testing.assert_allclose(np.concatenate(found, axis=1), whole, 1e-4, 1e-5)


@pytest.mark.slow  # the golden file has gradients too
def test_gradient_against_finite_differences(with_adapters, packed, gpt2):
    config = dataclasses.replace(
        gpt2, dtype="float64", remat="dots", norm_order="post", dropout=Dropout(hidden=0.1)
    )
    wanted = AdapterConfig(4, activation="tanh", scale=0.5, reads="sum")
    with jax.enable_x64(True):
        declared, params = with_adapters(config, wanted)
        params = jax.tree.map(np.float64, params)
        new, old = tree.partition(params, peft.trained(declared))

        @jax.jit
        def loss(new):
            return clm(config)(tree.combine(new, old), packed, jax.random.key(1))[0].sum

        grads, random = jax.jit(jax.grad(loss))(new), np.random.RandomState(2)
        for path, gradient in zip(tree.paths(grads), jax.tree.leaves(grads), strict=True):
            direction, step = random.randn(*gradient.shape), 1e-5

            def along(amount, path=path, direction=direction):
                def move(here, leaf):
                    return leaf + amount * direction if here == path else leaf

                return float(loss(tree.map_with_path(move, new)))

            slope = (along(step) - along(-step)) / (2 * step)
            np.testing.assert_allclose(
                np.vdot(gradient, direction), slope, rtol=1e-6, atol=1e-6, err_msg=path
            )


def test_only_adapters_train(llama, packed, assert_bitwise):
    declared = adapter.spec(models.spec(llama), llama, SMALL)
    base = spec.init(jax.random.key(0), models.spec(llama))
    start = peft.add(base, declared, jax.random.key(1))
    assert not np.any(start["layers"]["mlp_adapter"].up)
    assert_bitwise(peft.without(start, declared), base)
    new, old = tree.partition(start, peft.trained(declared))
    assert spec.count(declared) - spec.count(models.spec(llama)) == sum(
        leaf.size for leaf in jax.tree.leaves(new)
    )
    optimizer = optax.adam(1e-2)

    @jax.jit
    def step(new, state):
        def loss(new):
            return clm(llama)(tree.combine(new, old), packed, None)[0].sum

        value, grads = jax.value_and_grad(loss)(new)
        updates, state = optimizer.update(grads, state)
        return value, optax.apply_updates(new, updates), state

    state, losses, trained = optimizer.init(new), [], new
    for _ in range(8):
        value, trained, state = step(trained, state)
        losses.append(float(value))
    assert losses[-1] < losses[0]
    after = tree.combine(trained, old)
    changed = tree.map_with_path(lambda path, a, b: not np.array_equal(a, b), start, after)
    for path, moved in zip(tree.paths(changed), jax.tree.leaves(changed), strict=True):
        assert moved == ("_adapter/" in path), path


@pytest.mark.parametrize("stage", [3, pytest.param(1, marks=pytest.mark.slow)])
def test_eight_devices_equal_one(stage, with_adapters, packed):
    """Adapters work where the stream lies: over tensor by positions; at each end of ZeRO."""
    base = CONFIGS["gemma2"]
    local = dataclasses.replace(base.attention, pattern=("local",))
    config = dataclasses.replace(base, attention=local, dropout=Dropout(hidden=0.1))
    batch = packed | {"tokens": packed["tokens"] % config.vocab_size}
    batch |= {"targets": np.minimum(packed["targets"], config.vocab_size - 1)}
    declared, params = with_adapters(config, AdapterConfig(4, reads="sum"))

    @jax.jit
    def run(params, batch):
        def loss(params):
            total, _ = clm(config)(params, batch, jax.random.key(0))
            return total.sum / total.weight, ()

        gradient, finish = zero.value_and_grad(loss, sharding, params)
        value, found = gradient()
        return value, peft.extract(finish(found), declared)

    sharding = zero.Sharding(declared, jnp.float32, stage)
    expected = jax.device_get(run(params, batch))
    with jax.set_mesh(mesh.make_mesh(mesh.MeshConfig(2, 2, 2), jax.devices())):
        placed = spec.move(params, declared)
        found = jax.device_get(run(placed, mesh.shard_batch(batch)))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, 1e-4, 1e-5), found, expected)


def test_unrolled_layers_equal_stacked_ones(with_adapters, gpt2):
    _, params = with_adapters(gpt2)
    unrolled = dataclasses.replace(gpt2, scan_layers=False)
    declared = adapter.spec(models.spec(unrolled), unrolled, SMALL)
    listed = params | {"layers": tree.unstack(params["layers"])}
    shapes = jax.tree.map(jnp.shape, listed)
    assert shapes == spec.map_params(lambda param: param.shape, declared)
    tokens = np.random.RandomState(0).randint(0, 64, (2, 8)).astype(np.int32)
    found, expected = (
        jax.jit(lambda params, config=config: models.apply(params, tokens, config)[0])(of)
        for config, of in ((unrolled, listed), (gpt2, params))
    )
    np.testing.assert_allclose(found, expected, 1e-5, 1e-6)


@pytest.mark.usefixtures("optimizing_compiler")
@pytest.mark.parametrize("scan", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_no_gradient_of_a_frozen_weight_is_computed(scan, with_adapters):
    """No product in the compiled program has the shape of one; in that for all weights, many."""
    config = models.llama(
        vocab_size=72, num_layers=2, embed_dim=24, num_heads=4, mlp_dim=40, scan_layers=scan
    )
    declared, params = with_adapters(config)
    tokens = np.random.RandomState(0).randint(0, 72, (2, 16)).astype(np.int32)
    batch = {"tokens": tokens, "targets": tokens}

    def products(trained):
        new, old = tree.partition(params, trained)

        def loss(new):
            return clm(config)(tree.combine(new, old), batch, None)[0].sum

        text = jax.jit(jax.grad(loss)).lower(new).compile().as_text()
        return re.findall(
            r"= f32\[(?:24,40|40,24|24,24|24,4,6|4,6,24)\]\S* (?:dot|custom-call)", text
        )

    assert not scan or products(lambda path, leaf: True)
    assert not products(peft.trained(declared))


def test_bad_wishes_are_errors(llama):
    with pytest.raises(ValueError, match=r"adapter.after=\('heads',\)"):
        AdapterConfig(4, after=("heads",))
    with pytest.raises(ValueError, match="adapter.dim=0"):
        AdapterConfig(0)
    with pytest.raises(ValueError, match="adapter.scale=0"):
        AdapterConfig(4, scale=0.0)
    once = adapter.spec(models.spec(llama), llama, SMALL)
    with pytest.raises(ValueError, match="already has attention_adapter, mlp_adapter"):
        adapter.spec(once, llama, SMALL)
