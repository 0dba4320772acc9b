"""Masks are drawn from the step's key: anew in every epoch, alike for the same key."""

import jax
import jax.numpy as jnp
import numpy as np
import optax

from llmjax import mesh
from llmjax.objectives import MaskingConfig, PreparedLoss, Weighted
from llmjax.objectives.mlm import masks
from llmjax.train import TrainState, make_step

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
