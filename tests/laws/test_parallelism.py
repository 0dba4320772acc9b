"""Law 3 for stages, shared sequences and their products: loss and gradient are one device's.

With dropout and packing throughout. A few meshes by default, since each takes seconds to compile;
`pytest -m slow` has a dozen and more.
"""

import dataclasses
import functools
import math

import jax
import numpy as np
import pytest

from llmjax import mesh, models
from llmjax.models import pipeline
from llmjax.objectives import MaskingConfig, PreparedLoss, clm, mlm
from llmjax.spec import is_param

DROPOUT = models.Dropout(embedding=0.1, attention=0.1, hidden=0.1)
SIZES = {"vocab_size": 64, "num_layers": 4, "embed_dim": 16, "num_heads": 4, "dropout": DROPOUT}
MODELS = {
    "decoder": models.llama(num_kv_heads=2, mlp_dim=32, **SIZES),
    "windows": models.gemma3(
        num_kv_heads=2,
        head_dim=4,
        mlp_dim=32,
        attention=models.Attention(pattern=("local", "global"), window=5, qk_norm="head"),
        **SIZES,
    ),
    "encoder": models.with_head(models.bert(max_length=16, **SIZES), "mlm"),
    "experts": models.qwen3_moe(
        num_kv_heads=2,
        mlp_dim=32,
        experts=models.Experts(count=4, per_token=2, dim=16, balance=0.01),
        **SIZES,
    ),
}
# Devices for (data, fsdp, tensor, expert, stage, context), and how the pipeline runs.
MESHES = {
    "stage": ((1, 1, 1, 1, 2, 1), {}),
    "stage, 2 rounds": ((1, 1, 1, 1, 2, 1), {"rounds": 2}),
    "stage, 4": ((1, 1, 1, 1, 4, 1), {"microbatches": 8}),
    "context": ((1, 1, 1, 1, 1, 2), {}),
    "context, 4": ((1, 1, 1, 1, 1, 4), {}),
    "stage x context x tensor": ((1, 1, 2, 1, 2, 2), {"rounds": 2}),
    "stage x context x fsdp": ((1, 2, 1, 1, 2, 2), {}),
    "stage x data x fsdp": ((2, 2, 1, 1, 2, 1), {"microbatches": 2}),
    "stage x tensor, 2 rounds": ((1, 1, 2, 1, 2, 1), {"rounds": 2, "microbatches": 4}),
    "stage x fsdp x tensor": ((1, 2, 2, 1, 2, 1), {}),
    "context x data x tensor": ((2, 1, 2, 1, 1, 2), {}),
    "context x fsdp": ((1, 2, 1, 1, 1, 4), {}),
    "stage x context x data": ((2, 1, 1, 1, 2, 2), {}),
    "stage x expert x context": ((1, 1, 1, 2, 2, 2), {}),
    "expert x fsdp x context": ((1, 2, 1, 2, 1, 2), {}),
}
DEFAULT = {
    ("decoder", "stage, 2 rounds"),
    ("encoder", "stage x context x tensor"),
    ("experts", "stage x expert x context"),
}
CASES = [
    pytest.param(model, devices, marks=() if (model, devices) in DEFAULT else pytest.mark.slow)
    for model in MODELS
    for devices, (sizes, options) in MESHES.items()
    if model == "experts" or sizes[3] == 1
    # Four layers in windows by turns are two groups, no more.
    if model != "windows" or sizes[4] * options.get("rounds", 1) <= 2
]


def loss_of(config):
    """What draws the masks of a batch, and the sum of its losses then."""
    if config.head.kind == "mlm":
        loss = mlm(config, masking=MaskingConfig(), mask_id=1, special_ids=(0,))
    else:
        loss = clm(config)

    def prepare(batch, key):
        return loss.prepare(batch, key) if isinstance(loss, PreparedLoss) else batch

    return prepare, lambda params, batch, key: loss(params, batch, key)[0].sum


@pytest.fixture(scope="module")
def compute(draw, packed):
    """`compute(config, sizes)`: the loss and its gradient; of one device in float64.

    In float32 one device is as far from that as meshes are: 2.6e-5 of the largest entry at worst.
    """
    # 16 rows, of which every second one is like the one before.
    batch = {name: np.repeat(values, 2, axis=0) for name, values in packed.items()}

    def run(config, sizes=None):
        spec = models.spec(config)
        params, key = draw(spec), jax.random.key(3)
        prepare, loss = loss_of(config)
        if sizes is None:
            # In float64 other masks would be drawn.
            prepared = jax.device_get(jax.jit(prepare)(batch, key))
            with jax.enable_x64(True):
                _, exact = loss_of(dataclasses.replace(config, dtype="float64"))
                wide = jax.tree.map(lambda array: array.astype(np.float64), params)
                return jax.jit(jax.value_and_grad(exact))(wide, prepared, key)

        def total(params, batch, key):
            return loss(params, prepare(batch, key), key)

        devices = jax.devices()[: math.prod(sizes)]
        with jax.set_mesh(mesh.make_mesh(mesh.MeshConfig(*sizes), devices)):
            placed = jax.tree.map(
                lambda param, value: jax.device_put(value, mesh.named_sharding(param.axes)),
                spec,
                params,
                is_leaf=is_param,
            )
            step = jax.jit(jax.value_and_grad(total))
            return jax.device_get(step(placed, mesh.shard_batch(batch), key))

    return run


@pytest.fixture(scope="module")
def alone(compute):
    """The same of one device, once for each model."""
    return functools.cache(lambda name: jax.device_get(compute(MODELS[name])))


@pytest.mark.parametrize(("model", "devices"), CASES)
def test_equals_one_device(model, devices, compute, alone):
    sizes, options = MESHES[devices]
    config = dataclasses.replace(MODELS[model], pipeline=models.Pipeline(**options))
    assert_equal(compute(config, sizes), alone(model))


def assert_equal(ours, theirs):
    """Losses, and gradients by their largest entry: to twice what float32 is off on one device."""
    (loss, gradient), (expected_loss, expected) = ours, theirs
    np.testing.assert_allclose(loss, expected_loss, rtol=2e-6)

    def check(actual, expected):
        limit = 5e-5 * max(np.abs(expected).max(), 0.1)
        np.testing.assert_allclose(actual, expected, rtol=0, atol=limit)

    jax.tree.map(check, gradient, expected)


def test_recomputed_stages_equal_one_device(compute, alone):
    config = dataclasses.replace(
        MODELS["decoder"], remat="full", pipeline=models.Pipeline(microbatches=4)
    )
    assert_equal(compute(config, (1, 2, 1, 1, 2, 1)), alone("decoder"))


@pytest.mark.parametrize(("stages", "rounds"), [(2, 1), (2, 2), (4, 2), (2, 4), (4, 6), (6, 4)])
def test_every_stage_sends_and_gets_a_group_a_turn(stages, rounds):
    """And all groups come where the schedule has them: group g at stage g mod P."""
    turns = pipeline.deals(pipeline.Schedule(stages, rounds, stages))
    assert len(turns) == rounds
    for turn in turns:
        assert [sent // rounds for sent, _ in turn] == list(range(stages))
        assert [got % stages for _, got in turn] == list(range(stages))
        assert {sent for sent, _ in turn} == {got for _, got in turn}
    assert sorted(sent for turn in turns for sent, _ in turn) == list(range(stages * rounds))


@pytest.mark.parametrize(("rounds", "microbatches"), [(1, 8), (3, 4)])
def test_the_bubble_is_as_published(rounds, microbatches):
    """Narayanan et al. 2021, section 2.2: (P-1) / (V·M) of the ideal time is lost."""
    plan = pipeline.Schedule(4, rounds, microbatches)
    lost = 3 / (rounds * microbatches)
    assert plan.bubble == pytest.approx(lost / (1 + lost))


def test_micro_batches_are_chosen_by_the_rows():
    with jax.set_mesh(mesh.make_mesh(mesh.MeshConfig(2, stage=2), jax.devices()[:4])):

        def chosen(rows, wanted=0):
            return pipeline.schedule(models.Pipeline(wanted), rows, layers=4).microbatches

        assert [chosen(rows) for rows in (4, 8, 12, 16, 64)] == [2, 4, 6, 8, 8]
        assert chosen(64, 32) == 32
        with pytest.raises(ValueError, match=r"microbatches=6: a batch of 16 rows divides into"):
            chosen(16, 6)
        with pytest.raises(ValueError, match="a batch of 6 rows does not divide"):
            chosen(6)


@pytest.mark.parametrize(
    ("changes", "sizes", "message"),
    [
        ({"num_layers": 3}, (1, 1, 1, 1, 2, 1), "3 layers do not divide into 2 equal groups"),
        ({"scan_layers": False}, (1, 1, 1, 1, 2, 1), "scan_layers=True"),
        ({}, (1, 1, 1, 1, 1, 3), "16 tokens do not divide into 6 equal parts"),
    ],
)
def test_what_does_not_fit_is_said(changes, sizes, message):
    config = dataclasses.replace(MODELS["decoder"], **changes)
    devices = jax.devices()[: math.prod(sizes)]
    with (
        jax.set_mesh(mesh.make_mesh(mesh.MeshConfig(*sizes), devices)),
        pytest.raises(ValueError, match=message),
    ):
        models.require_fits(config, rows=8, length=16)


def test_a_mesh_for_writing_keeps_the_devices_and_splits_parameters():
    made = mesh.make_mesh(mesh.MeshConfig(1, fsdp=2, stage=2, context=2))
    writing = mesh.for_decoding(made)
    assert writing.shape["fsdp"] == 8
    assert writing.size == 8
    assert set(writing.devices.flat) == set(made.devices.flat)
    plain = mesh.make_mesh(mesh.MeshConfig(2, 2, 2))
    assert mesh.for_decoding(plain) is plain
