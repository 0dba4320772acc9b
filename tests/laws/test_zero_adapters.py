"""Frozen weights too are held whole during a step, and adapters have the gradient of one device."""

import math

import jax
import numpy as np
import pytest

from llmjax import mesh, models, planning, tree
from llmjax import spec as specs
from llmjax.objectives import clm
from llmjax.peft import Ia3Config, LoraConfig, MethodConfig, method
from llmjax.train import Sharding, abstract_state, make_step, start_state
from tests.laws.recorder import RECORDER

SIZES = {"vocab_size": 64, "num_layers": 2, "embed_dim": 64, "num_heads": 4, "mlp_dim": 64}
MODELS = {
    "llama": models.llama(**SIZES),
    "experts": models.qwen3_moe(**SIZES, experts=models.Experts(count=4, per_token=2, dim=16)),
}
EXPERTS = r"/(attention|experts)/(query|value|up|down)$"
METHODS = {
    "lora": MethodConfig("lora", lora=LoraConfig(2, targets=r"/(query|down|gate)$|^embedding$")),
    "nf4": MethodConfig("lora", quantize="nf4", lora=LoraConfig(2)),
    "int8": MethodConfig("lora", quantize="int8", lora=LoraConfig(2, dora=True)),
    "dora": MethodConfig("lora", lora=LoraConfig(2, targets=EXPERTS, dora=True)),
    "ia3": MethodConfig("ia3", ia3=Ia3Config(EXPERTS, inputs="/down$")),
}


def compiled(config, declared, trained, zero, accumulate):
    ours, frozen = tree.partition(declared, trained)
    sharding = Sharding(ours, config.compute_dtype, zero, frozen)
    return make_step(clm(config), RECORDER, accumulate=accumulate, sharding=sharding)


def on(sizes):
    devices = jax.devices()[: math.prod(sizes.values())]
    return jax.set_mesh(mesh.make_mesh(mesh.MeshConfig(**sizes), devices))


def moved(params, trained):
    """What trains, away from where it begins."""

    def one(path, value):
        if not trained(path, value):
            return np.asarray(value)
        random = np.random.RandomState(tree.path_hash(path))
        return (value + 0.1 * random.randn(*value.shape)).astype(np.float32)

    return tree.map_with_path(one, params)


slow = pytest.mark.slow


@pytest.mark.parametrize(
    ("name", "how", "zero", "accumulate", "sizes"),
    [
        ("llama", "lora", 2, 2, {"data": 2, "fsdp": 2}),
        ("experts", "ia3", 3, 2, {"data": 2, "expert": 2}),
        pytest.param("llama", "nf4", 1, 1, {"data": 1, "fsdp": 2, "tensor": 2}, marks=slow),
        pytest.param("llama", "int8", 2, 1, {"data": 1, "fsdp": 2, "stage": 2}, marks=slow),
        pytest.param("experts", "dora", 1, 2, {"data": 2, "expert": 2}, marks=slow),
    ],
)
def test_adapters_have_the_gradient_of_one_device(name, how, zero, accumulate, sizes, packed, draw):
    config, options = MODELS[name], METHODS[how]
    plain = models.spec(config)
    declared = method.spec(plain, config, options)
    trained = method.trains(declared, options)
    base = specs.move(draw(plain), plain)
    params = moved(method.adapt(base, plain, declared, options, jax.random.key(0)), trained)

    def gradient():
        placed = specs.move(jax.tree.map(np.copy, params), declared)
        state = start_state(jax.random.key(7), placed, RECORDER, trained)
        step = compiled(config, declared, trained, zero, accumulate)
        after, metrics = step(state, mesh.shard_batch(packed))
        assert not metrics["skipped"]
        return jax.device_get(after.opt_state.grads)

    expected = gradient()
    with on(sizes):
        found = gradient()
    largest = max(np.abs(leaf).max() for leaf in jax.tree.leaves(expected))

    def check(actual, expected):
        np.testing.assert_allclose(actual, expected, rtol=0, atol=1e-5 * largest)

    jax.tree.map(check, found, expected)


def test_a_frozen_weight_is_gathered_once_a_step(optimizing_compiler):
    """Of a batch in two parts, of which stage 3 gathers it four times."""
    config, options = models.llama(**SIZES | {"embed_dim": 128}), METHODS["lora"]
    declared = method.spec(models.spec(config), config, options)
    trained = method.trains(declared, options)
    sizes = {"data": 1, "fsdp": 4}

    def sent(zero):
        with on(sizes):
            _, frozen = tree.partition(specs.abstract(declared), trained)
            state = abstract_state(tree.partition(declared, trained)[0], RECORDER)
            place = mesh.named_sharding(("batch", "sequence"))
            rows = jax.ShapeDtypeStruct((16, 16), "int32", sharding=place)
            step = compiled(config, declared, trained, zero, accumulate=2)
            lowered = step.lower(state.replace(frozen=frozen), {"tokens": rows, "targets": rows})
            text = lowered.compile().as_text()
        return planning.by_axis(planning.collectives(text, sizes), sizes)["fsdp"]

    assert sent(2) < 0.5 * sent(3)
