"""Law 3: every mesh equals one device, in losses, gradients and what two steps make of them."""

import functools

import jax
import numpy as np
import optax
import pytest

from llmjax import mesh, models, optim
from llmjax.kernels.flash_attention import xla as attention
from llmjax.kernels.linear_cross_entropy import xla as cross_entropy
from llmjax.objectives import clm
from llmjax.spec import Param
from llmjax.train import make_step

# Devices for (data, fsdp, tensor).
MESHES = {
    "data": (8, 1, 1),
    "fsdp": (1, 8, 1),
    "tensor 2": (1, 1, 2),
    "tensor 4": (1, 1, 4),
    "data x fsdp x tensor": (2, 2, 2),
}

# Adam divides a gradient by its size: ε keeps it from making steps of those that are rounding.
OPTIMIZER = {"learning_rate": 0.02, "warmup_steps": 0, "epsilon": 1e-3, "clip_norm": 0.1}


@pytest.fixture(scope="module", autouse=True)
def small_pieces():
    """Several blocks of queries and chunks of tokens, so that they are sharded, too."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(attention, "MIN_BLOCK", 8)
        patch.setattr(cross_entropy, "CHUNK_BYTES", 1024)
        yield


@pytest.fixture(scope="module")
def train(draw, on_mesh, start, packed):
    """`train(name, sizes)`: both losses, and parameters and optimizer state after two steps."""
    dropout = models.Dropout(embedding=0.1, attention=0.1, hidden=0.1)
    sizes = {"vocab_size": 64, "num_layers": 2, "embed_dim": 16}
    variants = {
        "gpt2, dropout, adamw": (models.gpt2(num_heads=4, dropout=dropout, **sizes), "adamw"),
        "llama, muon": (
            models.llama(num_heads=8, num_kv_heads=4, mlp_dim=32, **sizes),
            "muon",
        ),
        "gpt2, dots": (
            models.gpt2(num_heads=4, dropout=dropout, remat="dots", scan_layers=False, **sizes),
            "adamw",
        ),
        "llama, full": (models.llama(num_heads=4, mlp_dim=32, remat="full", **sizes), "adamw"),
    }

    @functools.cache
    def two_steps(name, devices):
        config, optimizer_name = variants[name]
        spec = models.spec(config)
        optimizer = optim.make(optim.OptimizerConfig(optimizer_name, **OPTIMIZER), spec, 10)
        step = make_step(clm(config, label_smoothing=0.1, z_loss=1e-3), optimizer)
        with on_mesh(devices):
            state = start(spec, draw(spec), optimizer)
            batch = mesh.shard_batch(packed)
            losses = []
            for _ in range(2):
                state, metrics = step(state, batch)
                losses.append(metrics["loss"])
            assert not metrics["skipped"]
            return jax.device_get((losses, state.params, state.opt_state))

    return two_steps


# Each axis alone for one model, and their product for the other; `pytest -m slow` has the rest.
DEFAULT = {
    ("gpt2, dropout, adamw", "fsdp"),
    ("gpt2, dropout, adamw", "tensor 4"),
    ("llama, muon", "data x fsdp x tensor"),
}
CASES = [
    pytest.param(name, devices, marks=() if (name, devices) in DEFAULT else pytest.mark.slow)
    for name in ("gpt2, dropout, adamw", "llama, muon")
    for devices in MESHES
]


@pytest.mark.parametrize(("name", "devices"), CASES)
def test_every_mesh_equals_one_device(name, devices, train):
    losses, params, optimizer = train(name, MESHES[devices])
    expected_losses, expected_params, expected_optimizer = train(name, None)
    np.testing.assert_allclose(losses, expected_losses, rtol=2e-6)
    # The optimizer's moments are the gradients of both steps.
    for ours, theirs in ((params, expected_params), (optimizer, expected_optimizer)):
        jax.tree.map(
            functools.partial(np.testing.assert_allclose, rtol=1e-4, atol=2e-6), ours, theirs
        )


@pytest.mark.slow
@pytest.mark.parametrize(
    "name", ["gpt2, dots", pytest.param("llama, full", marks=pytest.mark.slow)]
)
def test_rematerialisation_on_a_mesh_equals_one_device(name, train):
    test_every_mesh_equals_one_device(name, "data x fsdp x tensor", train)


@pytest.mark.parametrize("name", ["gpt2, dropout, adamw", "llama, muon"])
def test_two_steps_are_enough_to_see(name, train, draw):
    """They moved every parameter and lowered the loss, or the tests above would show little."""
    losses, params, _ = train(name, None)
    assert losses[1] < losses[0] - 0.02
    before = draw(
        jax.tree.map(lambda array: Param(array.shape, (None,) * array.ndim, None), params)
    )
    assert all(jax.tree.leaves(jax.tree.map(lambda a, b: np.abs(a - b).max() > 0, params, before)))


def test_parameters_and_moments_lie_where_the_rules_say(gpt2, draw, on_mesh, start, packed):
    spec = models.spec(gpt2)
    optimizer = optim.make(optim.OptimizerConfig(**OPTIMIZER), spec, 10)
    step = make_step(clm(gpt2), optimizer)
    with on_mesh((2, 2, 2)):
        state, _ = step(start(spec, draw(spec), optimizer), mesh.shard_batch(packed))
        adam = next(part for part in state.opt_state if isinstance(part, optax.ScaleByAdamState))
        for tree in (state.params, adam.mu, adam.nu):
            query = tree["layers"]["attention"]["query"]
            assert query.sharding.spec == jax.P(None, "fsdp", "tensor", None)
            assert query.addressable_shards[0].data.shape == (2, 8, 2, 4)
            assert tree["embedding"].addressable_shards[0].data.shape == (32, 8)
            assert tree["layers"]["mlp"]["down"].addressable_shards[0].data.shape == (2, 32, 8)
