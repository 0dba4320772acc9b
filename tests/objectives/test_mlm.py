"""Masked language modelling: the loss of its formula, of masked tokens only, however it is cut."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from llmjax import mesh, models
from llmjax.objectives import MaskingConfig, mlm
from llmjax.spec import is_param
from tests.objectives import tiny_transformer

B, S, D, V, MASK = 8, 16, 8, 48, 4
MASKING = MaskingConfig(rate=0.3)


def config_of(**fields) -> models.ModelConfig:
    head = models.Head("mlm", dense=True, norm=True, bias=True)
    encoder = {"attention": models.Attention(causal=False), "position": "none", "tied": True}
    sizes = {"vocab_size": V, "num_layers": 1, "embed_dim": D, "num_heads": 1, "mlp_dim": 16}
    plain = {"activation": "gelu", "gated": False}
    return models.llama(**(sizes | encoder | plain | {"head": head} | fields))


@pytest.fixture(scope="module")
def batch() -> dict[str, np.ndarray]:
    """Two segments and padding, 2 to 16 tokens; the last row has none."""
    random = np.random.default_rng(0)
    tokens = random.integers(5, V, (B, S)).astype(np.int32)
    place, sizes = np.arange(S), 2 * np.arange(B, 0, -1)[:, None]
    segments = np.where(place < sizes // 2, 1, np.where(place < sizes, 2, 0))
    segments[-1] = 0
    return {"tokens": tokens, "segment_ids": segments.astype(np.int32)}


def loss_of(config, masking=MASKING, **rest):
    return mlm(config, masking, mask_id=MASK, special_ids=(0, 1, 2, 3), **rest)


def dense_targets(prepared) -> np.ndarray:
    targets = np.full((B, S), -1)
    for row in range(B):
        at, values = (np.asarray(prepared[f"masked_{n}"][row]) for n in ("positions", "targets"))
        targets[row, at[values >= 0]] = values[values >= 0]
    return targets


def with_gradient(loss, params, batch, key):
    def total(params):
        weighted, _ = loss(params, batch, key)
        return weighted.sum, weighted.weight

    return jax.value_and_grad(total, has_aux=True)(params)


def assert_close(ours, theirs, tolerance=1e-5):
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=tolerance, atol=tolerance), ours, theirs
    )


def test_the_loss_and_its_gradient_are_those_of_the_formula(batch, draw):
    config = config_of()
    params, key = draw(models.spec(config)), jax.random.key(0)
    loss = loss_of(config)
    prepared = jax.device_get(loss.prepare(batch, key))
    (total, weight), grads = jax.jit(functools.partial(with_gradient, loss))(params, batch, key)

    exact = jax.tree.map(lambda x: np.asarray(x, np.float64), params)
    rows = prepared["masked_tokens"], batch["segment_ids"], dense_targets(prepared)

    def of(**changed):
        return tiny_transformer.mlm_loss(exact | changed, *rows)[0]

    expected, count = tiny_transformer.mlm_loss(exact, *rows)
    np.testing.assert_allclose((total, weight), (expected, count), rtol=1e-5)
    by_table = tiny_transformer.gradient(lambda table: of(embedding=table), exact["embedding"])
    np.testing.assert_allclose(grads["embedding"], by_table, rtol=1e-4, atol=1e-4)
    by_bias = tiny_transformer.gradient(
        lambda bias: of(head=exact["head"] | {"bias": bias}), exact["head"]["bias"]
    )
    np.testing.assert_allclose(grads["head"]["bias"], by_bias, rtol=1e-4, atol=1e-4)


def test_the_head_is_computed_at_masked_positions_only(batch, draw):
    config = config_of()
    params, loss = draw(models.spec(config)), loss_of(config)
    text = str(jax.make_jaxpr(functools.partial(with_gradient, loss))(params, batch, None))
    rows = B * MASKING.max_predictions(S)
    assert f"[{rows},{V}]" in text
    assert f"[{B},{S},{V}]" not in text and f"[{B * S},{V}]" not in text


def test_masks_are_drawn_from_the_key(batch, draw):
    loss = loss_of(config_of())
    draws = [loss.prepare(batch, jax.random.key(seed))["masked_tokens"] for seed in (0, 0, 1)]
    np.testing.assert_array_equal(draws[0], draws[1])
    assert np.any(draws[0] != draws[2])
    still = [loss.prepare(batch, None)["masked_tokens"] for _ in range(2)]
    np.testing.assert_array_equal(*still)
    # The masks of a step are not those of its first micro-batch, whose key is its first part.
    part = loss.prepare(batch, jax.random.split(jax.random.key(0), 2)[0])["masked_tokens"]
    assert np.any(draws[0] != part)


def test_a_prepared_batch_may_be_cut(batch, draw):
    """Micro-batches with keys of their own add up to the batch that is not cut."""
    config = config_of()
    params, key = draw(models.spec(config)), jax.random.key(2)
    loss = loss_of(config)
    step = jax.jit(functools.partial(with_gradient, loss))
    whole = step(params, batch, key)
    prepared = loss.prepare(batch, key)
    parts = [
        step(params, {name: rows[part::4] for name, rows in prepared.items()}, jax.random.key(part))
        for part in range(4)
    ]
    assert_close(jax.tree.map(lambda *x: sum(x), *parts), whole)
    cut = [step(params, {n: rows[p::4] for n, rows in batch.items()}, key) for p in range(4)]
    added = jax.tree.map(lambda *x: sum(x), *cut)
    assert abs(added[0][0] - whole[0][0]) > 0.01 * whole[0][0]


@pytest.mark.parametrize("tied", [pytest.param(False, marks=pytest.mark.slow), True])
def test_a_mesh_of_every_axis_equals_one_device(tied, batch, draw):
    config = config_of(tied=tied, num_heads=8, embed_dim=16)
    spec, key = models.spec(config), jax.random.key(3)
    params, loss = draw(spec), loss_of(config)
    step = jax.jit(functools.partial(with_gradient, loss))
    alone = step(params, batch, key)
    with jax.set_mesh(mesh.make_mesh(mesh.MeshConfig(2, 2, 2))):
        placed = jax.tree.map(
            lambda p, value: jax.device_put(value, mesh.named_sharding(p.axes)),
            spec,
            params,
            is_leaf=is_param,
        )
        spread = jax.device_get(step(placed, mesh.shard_batch(batch), key))
    assert_close(spread, alone, 1e-4)


def test_whole_words_and_token_types(batch, draw):
    starts = np.arange(V) % 2 == 0
    config = config_of(embedding=models.Embedding(token_types=2))
    loss = loss_of(config, MaskingConfig(rate=0.3, whole_word=True), starts_word=starts)
    params, key = draw(models.spec(config)), jax.random.key(4)
    types = np.ones((B, S), np.int32)
    plain, of_ones = (
        loss(params, given, key)[0].sum for given in (batch, batch | {"token_types": types})
    )
    # Whatever is of type 1 shifts the states.
    assert abs(plain - of_ones) > 1e-3 * plain
    targets = dense_targets(loss.prepare(batch, key))
    continues = ~starts[batch["tokens"][:, 1:]] & (np.diff(batch["segment_ids"], axis=1) == 0)
    continues &= batch["segment_ids"][:, 1:] > 0
    both = (targets[:, 1:] >= 0) == (targets[:, :-1] >= 0)
    assert both[continues].all() and (targets >= 0).any()


def test_capped_logits_are_those_of_the_head(batch, draw):
    """As if the whole of them were computed: the bias is added before they are bent."""
    head = models.Head("mlm", dense=True, bias=True, cap=2.0)
    config = config_of(head=head)
    params, loss, key = draw(models.spec(config)), loss_of(config), jax.random.key(6)
    prepared = loss.prepare(batch, key)
    segments = batch["segment_ids"]
    hidden, _ = models.apply(params, prepared["masked_tokens"], config, segment_ids=segments)
    shares = jax.nn.log_softmax(models.logits(params, hidden, config))
    rows, places = np.nonzero((targets := dense_targets(prepared)) >= 0)
    expected = -np.asarray(shares)[rows, places, targets[rows, places]].sum()
    np.testing.assert_allclose(loss(params, batch, key)[0].sum, expected, rtol=1e-5)


def test_other_heads_are_refused():
    with pytest.raises(ValueError, match=r"mlm needs a model with head\.kind=mlm, not rtd"):
        loss_of(config_of(head=models.Head("rtd")))


def test_rows_without_targets_cost_nothing(batch, draw):
    config = config_of()
    params, loss = draw(models.spec(config)), loss_of(config)
    empty = {"tokens": batch["tokens"], "segment_ids": np.zeros((B, S), np.int32)}
    (total, weight), grads = with_gradient(loss, params, empty, jax.random.key(5))
    assert (total, weight) == (0, 0)
    assert all(jnp.all(x == 0) for x in jax.tree.leaves(grads))
