"""Law 7, for the step alone: what a step does depends on its state and batch only, to the last bit.

That files keep states and data orders is tested with checkpoints and with whole runs.
"""

import dataclasses

import jax
import numpy as np
import pytest

from llmjax import mesh, models, optim
from llmjax.objectives import MaskingConfig, clm, generator_config, mlm, rtd, rtd_spec
from llmjax.train import init_state, make_step

HIDDEN = {"mask_id": 3, "special_ids": (0, 1, 2)}


def pack_up(state):
    """Everything as bytes in host memory."""
    return jax.device_get(dataclasses.replace(state, key=jax.random.key_data(state.key)))


def unpack(packed, like):
    """A state from such bytes, placed as `like` is."""
    where = jax.tree.map(lambda leaf: leaf.sharding, like)
    state = dataclasses.replace(packed, key=jax.random.wrap_key_data(packed.key))
    return jax.device_put(state, where)


def settings(objective, gpt2, dropout):
    """A loss with random draws of its own, and the spec of what it trains."""
    if objective == "clm":
        config = dataclasses.replace(gpt2, dropout=dropout)
        return clm(config), models.spec(config)
    sizes = {"vocab_size": 64, "num_layers": 1, "embed_dim": 16, "num_heads": 4, "max_length": 16}
    encoder = models.electra(dropout=dropout, **sizes)
    if objective == "mlm":
        encoder = models.with_head(encoder, "mlm")
        return mlm(encoder, MaskingConfig(), **HIDDEN), models.spec(encoder)
    generator = generator_config(encoder, 0.5)
    return rtd(generator, encoder, MaskingConfig(), **HIDDEN), rtd_spec(generator, encoder)


@pytest.mark.parametrize(
    ("objective", "sizes"),
    [
        ("clm", (2, 2, 2)),
        ("mlm", None),
        pytest.param("clm", None, marks=pytest.mark.slow),
        pytest.param("rtd", (2, 2, 2), marks=pytest.mark.slow),
    ],
)
def test_a_run_taken_up_again_is_bitwise_the_same(objective, sizes, gpt2, on_mesh, packed):
    """With dropout, masks and replacements, whose draws hang on the state's key and step alone."""
    loss, spec = settings(objective, gpt2, models.Dropout(0.1, 0.1, 0.1))
    optimizer = optim.make(optim.OptimizerConfig(warmup_steps=2), spec, 6)

    def start():
        return init_state(jax.random.key(0), spec, optimizer)

    def go(state, first, last):
        step = make_step(loss, optimizer)  # compiled anew, as in a new process
        losses = []
        for number in range(first, last):
            rows = {name: np.roll(rows, number, axis=0) for name, rows in packed.items()}
            state, metrics = step(state, mesh.shard_batch(rows))
            losses.append(float(metrics["loss"]))
        return pack_up(state), losses

    with on_mesh(sizes):
        whole, losses = go(start(), 0, 4)
        half, first_losses = go(start(), 0, 2)
        rest, last_losses = go(unpack(half, start()), 2, 4)
    assert first_losses + last_losses == losses
    jax.tree.map(np.testing.assert_array_equal, rest, whole)


def test_every_step_and_every_key_drops_differently(gpt2, packed, start, draw):
    config = dataclasses.replace(gpt2, dropout=models.Dropout(hidden=0.5))
    spec = models.spec(config)
    # So small a rate that parameters stay, and only dropout tells losses apart.
    settings = {"learning_rate": 1e-12, "schedule": "constant", "warmup_steps": 0}
    optimizer = optim.make(optim.OptimizerConfig(**settings), spec, 6)
    step = make_step(clm(config), optimizer)
    losses = []
    for seed in (0, 1):
        state = start(spec, draw(spec), optimizer)
        state = dataclasses.replace(state, key=jax.random.key(seed))
        for _ in range(3):
            state, metrics = step(state, packed)
            losses.append(float(metrics["loss"]))
    assert len(set(losses)) == 6
