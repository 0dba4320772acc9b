"""Whatever of a model is held whole during a step, the gradient is one device's."""

import math

import jax
import numpy as np
import pytest

from llmjax import mesh, models, planning
from llmjax.objectives import clm
from llmjax.train import Sharding, abstract_state, make_step
from tests.laws.recorder import RECORDER

DROPOUT = models.Dropout(embedding=0.1, attention=0.1, hidden=0.1)
SIZES = {"vocab_size": 64, "num_layers": 2, "embed_dim": 16, "num_heads": 4, "mlp_dim": 32}
MODELS = {
    "gpt2": models.gpt2(**SIZES, max_length=16, dropout=DROPOUT),
    "experts": models.qwen3_moe(
        **SIZES,
        num_kv_heads=2,
        experts=models.Experts(count=4, per_token=2, dim=16),
        remat="full",
        pipeline=models.Pipeline(microbatches=2),
    ),
}


def compiled(config, zero=3, accumulate=1):
    sharding = Sharding(models.spec(config), config.compute_dtype, zero)
    return make_step(clm(config), RECORDER, accumulate=accumulate, sharding=sharding)


def gradient(config, batch, draw, start, **options):
    spec = models.spec(config)
    state = start(spec, draw(spec), RECORDER)
    after, metrics = compiled(config, **options)(state, mesh.shard_batch(batch))
    assert not metrics["skipped"]
    return jax.device_get(after.opt_state.grads)


def on(sizes):
    devices = jax.devices()[: math.prod(sizes.values())]
    return jax.set_mesh(mesh.make_mesh(mesh.MeshConfig(**sizes), devices))


@pytest.mark.parametrize(
    ("name", "zero", "accumulate", "sizes"),
    [
        pytest.param("gpt2", 1, 2, {"data": 2, "fsdp": 2}, marks=pytest.mark.slow),
        pytest.param("gpt2", 2, 2, {"data": 1, "fsdp": 2, "tensor": 2}, marks=pytest.mark.slow),
        ("gpt2", 3, 2, {"data": 2, "fsdp": 2}),
        ("experts", 1, 1, {"data": 1, "fsdp": 2, "stage": 2, "context": 2}),
        pytest.param("experts", 3, 2, {"data": 2, "expert": 2}, marks=pytest.mark.slow),
        pytest.param("experts", 3, 1, {"data": 2, "fsdp": 2, "stage": 2}, marks=pytest.mark.slow),
        pytest.param("gpt2", 1, 1, {"data": 2, "tensor": 2}, marks=pytest.mark.slow),
        pytest.param("gpt2", 2, 2, {"data": 2, "context": 2}, marks=pytest.mark.slow),
        pytest.param(
            "experts", 2, 1, {"data": 1, "fsdp": 2, "expert": 2, "stage": 2}, marks=pytest.mark.slow
        ),
        pytest.param("gpt2", 1, 1, {"data": 2, "tensor": 2, "context": 2}, marks=pytest.mark.slow),
    ],
)
def test_every_stage_has_the_gradient_of_one_device(
    name, zero, accumulate, sizes, packed, draw, start
):
    config = MODELS[name]
    expected = gradient(config, packed, draw, start, accumulate=accumulate)
    with on(sizes):
        found = gradient(config, packed, draw, start, zero=zero, accumulate=accumulate)
    largest = max(np.abs(leaf).max() for leaf in jax.tree.leaves(expected))

    def check(actual, expected):
        np.testing.assert_allclose(actual, expected, rtol=0, atol=5e-6 * largest)

    jax.tree.map(check, found, expected)


LARGER = {"vocab_size": 256, "num_layers": 4, "embed_dim": 64, "num_heads": 4, "max_length": 64}


@pytest.mark.parametrize(
    ("config", "zero", "sizes", "axis"),
    [
        (models.llama(**LARGER, mlp_dim=256), 1, {"data": 1, "fsdp": 4}, "fsdp"),
        (models.llama(**LARGER, mlp_dim=256), 2, {"data": 1, "fsdp": 4}, "fsdp"),
        (models.llama(**LARGER, mlp_dim=256), 3, {"data": 2, "fsdp": 2}, "data"),
        pytest.param(
            models.qwen3_moe(**LARGER, experts=models.Experts(count=4, per_token=2, dim=64)),
            3,
            {"data": 2, "expert": 2},
            "data",
            marks=pytest.mark.slow,
        ),
    ],
    ids=["1", "2", "3", "experts"],
)
def test_what_may_wait_is_sent_once_a_step(config, zero, sizes, axis, optimizing_compiler):
    """Of a batch in two parts, as counted in the compiled program beside the least."""
    with on(sizes):
        tokens = jax.ShapeDtypeStruct(
            (16, 64), "int32", sharding=mesh.named_sharding(("batch", "sequence"))
        )
        state = abstract_state(models.spec(config), RECORDER)
        step = compiled(config, zero, accumulate=2)
        text = step.lower(state, {"tokens": tokens, "targets": tokens}).compile().as_text()
    sent = planning.by_axis(planning.collectives(text, sizes), sizes)
    least = planning.least_traffic(config, sizes, 16, 64, accumulate=2, zero=zero, itemsize=4)
    assert sent[axis] == pytest.approx(least[axis], rel=0.05)


def test_other_stages_are_refused():
    with pytest.raises(ValueError, match=r"mesh.zero=4: choose one of 1, 2, 3"):
        mesh.MeshConfig(zero=4)
