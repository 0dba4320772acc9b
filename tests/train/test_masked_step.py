"""Masks are drawn from the step's key: anew in every epoch, alike for the same key."""

import jax
import jax.numpy as jnp
import numpy as np
import optax

from llmjax import lookup, mesh
from llmjax.objectives import MaskingConfig, PreparedLoss, Weighted
from llmjax.objectives.mlm import masks
from llmjax.train import TrainState, make_step
from tests.objectives.test_rtd import MASKING, loss_of

DOCUMENT = np.random.default_rng(0).integers(4, 64, (4, 32)).astype(np.int32)


def seen(batch, key):
    """What a step shows the model, read off a parameter that it sets."""
    prepare = masks(MaskingConfig(), mask_id=3, vocab_size=64, special_ids=(0, 1, 2))

    def compute(params, batch, key):
        # The gradient is what the model sees, and so is the update.
        return Weighted(jnp.sum(params * batch["masked_tokens"]), jnp.float32(1)), {}

    record = optax.stateless(lambda grads, params: jax.tree.map(lambda g, p: g - p, grads, params))
    optimizer = optax.chain(record, _rate())
    params = jnp.zeros(batch["tokens"].shape)
    state = TrainState(jnp.int32(0), params, optimizer.init(params), key)
    step = make_step(PreparedLoss(prepare, compute, "masked_tokens"), optimizer)
    for _ in range(2):
        state, _ = step(state, mesh.shard_batch(batch))
        yield np.asarray(state.params)


def _rate():
    def init(params):
        return {"learning_rate": jnp.zeros(())}

    return optax.GradientTransformation(init, lambda grads, state, params=None: (grads, state))


def test_two_epochs_of_a_document_differ_and_a_key_repeats():
    batch = {"tokens": DOCUMENT, "segment_ids": np.ones_like(DOCUMENT)}
    first, second = seen(batch, jax.random.key(5))
    assert np.array_equal(first, next(iter(seen(batch, jax.random.key(5)))))
    assert not np.array_equal(first, second)
    assert not np.array_equal(first, next(iter(seen(batch, jax.random.key(6)))))
    for shown in (first, second):
        changed = shown != DOCUMENT
        assert 0 < changed.mean() < 0.2


def test_devices_that_split_sequences_split_what_was_drawn():
    """10 positions of 32, over 4 devices and in 2 micro-batches: the same are read as on one."""
    assert MASKING.max_predictions(32) == 10
    loss = loss_of("none")

    def compute(params, batch, key):
        there = batch["masked_targets"] >= 0
        read = lookup.gather_positions(batch["tokens"], batch["masked_positions"])
        metrics = {
            "masked": jnp.sum(there, dtype=jnp.float32),
            "right": jnp.sum(there & (read == batch["masked_targets"]), dtype=jnp.float32),
            "seeds": jnp.sum(batch["rtd_seeds"] % 1024, dtype=jnp.float32),
            "scale": jnp.sum(batch["rtd_scale"]),
        }
        return Weighted(params * metrics["masked"], metrics["masked"]), metrics

    def once(accumulate):
        batch = {"tokens": DOCUMENT % 12 + 4, "segment_ids": np.ones_like(DOCUMENT)}
        optimizer = optax.chain(optax.sgd(1.0), _rate())
        params = jnp.zeros(())
        state = TrainState(jnp.int32(0), params, optimizer.init(params), jax.random.key(5))
        prepared = PreparedLoss(loss.prepare, compute, loss.mark)
        step = make_step(prepared, optimizer, accumulate=accumulate)
        return jax.device_get(step(state, mesh.shard_batch(batch))[1])

    alone = once(1)
    assert alone["right"] == 1
    with jax.set_mesh(mesh.make_mesh(mesh.MeshConfig(data=2, context=4))):
        split = once(2)
    for name in ("tokens", "masked", "right", "seeds", "scale"):
        np.testing.assert_allclose(split[name], alone[name], rtol=1e-6, err_msg=name)
