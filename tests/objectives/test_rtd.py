"""Replaced-token detection: the losses and gradients of the papers, and their embeddings."""

import functools
import importlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from llmjax import mesh, models, spec
from llmjax.objectives import (
    MaskingConfig,
    discriminator_params,
    generator_params,
    mlm,
    rtd,
    rtd_spec,
)
from tests.objectives import tiny_transformer

B, S, D, V, MASK = 8, 16, 8, 16, 4
MASKING = MaskingConfig(rate=0.3, mask_share=0.85, random_share=0.0)
SHARINGS = ("none", "tied", "disentangled")
WEIGHT = 50.0


def config_of(head: models.Head, **fields) -> models.ModelConfig:
    encoder = {"attention": models.Attention(causal=False), "position": "none", "tied": True}
    sizes = {"vocab_size": V, "num_layers": 1, "embed_dim": D, "num_heads": 1, "mlp_dim": 16}
    plain = {"activation": "gelu", "gated": False}
    return models.llama(**(sizes | encoder | plain | {"head": head} | fields))


GENERATOR = config_of(models.Head("mlm", dense=True, norm=True, bias=True))
DISCRIMINATOR = config_of(models.Head("rtd", dense=True, bias=True))


@pytest.fixture(scope="module")
def batch() -> dict[str, np.ndarray]:
    """Two segments and padding, 2 to 16 tokens; the last row has none."""
    random = np.random.default_rng(0)
    tokens = random.integers(5, V, (B, S)).astype(np.int32)
    place, sizes = np.arange(S), 2 * np.arange(B, 0, -1)[:, None]
    segments = np.where(place < sizes // 2, 1, np.where(place < sizes, 2, 0))
    segments[-1] = 0
    return {"tokens": tokens, "segment_ids": segments.astype(np.int32)}


def loss_of(sharing, generator=GENERATOR, discriminator=DISCRIMINATOR, **rest):
    ids = {"mask_id": MASK, "special_ids": (0, 1, 2, 3)}
    return rtd(generator, discriminator, MASKING, sharing=sharing, **ids, **rest)


def with_gradient(loss, params, batch, key):
    def total(params):
        weighted, metrics = loss(params, batch, key)
        return weighted.sum, (weighted.weight, metrics)

    return jax.value_and_grad(total, has_aux=True)(params)


@pytest.fixture(scope="module")
def step(batch, draw):
    """`step(sharing)`: parameters, what was drawn, and loss and gradient of one key."""

    @functools.cache
    def once(sharing):
        params, key = draw(rtd_spec(GENERATOR, DISCRIMINATOR, sharing)), jax.random.key(0)
        loss = loss_of(sharing)
        prepared = jax.device_get(loss.prepare(batch, key))
        seen = []
        module = importlib.import_module("llmjax.objectives.rtd")
        sample = module.sample_replacements
        with pytest.MonkeyPatch.context() as patch:

            def record(*args):
                seen.append(sample(*args))
                return seen[-1]

            patch.setattr(module, "sample_replacements", record)
            loss(params, batch, key)
        result = jax.jit(functools.partial(with_gradient, loss))(params, batch, key)
        return params, prepared, np.asarray(seen[0][0]), jax.device_get(result)

    return once


def dense_targets(prepared) -> np.ndarray:
    targets = np.full((B, S), -1)
    for row in range(B):
        at, values = (prepared[f"masked_{name}"][row] for name in ("positions", "targets"))
        targets[row, at[values >= 0]] = values[values >= 0]
    return targets


class ByHand:
    """The two losses of a step in float64, as functions of each model's parameters."""

    def __init__(self, params, prepared, corrupted, sharing):
        exact = jax.tree.map(lambda x: np.asarray(x, np.float64), params)
        self.generator, self.discriminator = exact["generator"], exact["discriminator"]
        if sharing == "tied":
            self.generator = self.generator | {"embedding": self.discriminator["embedding"]}
        if sharing == "disentangled":
            both = self.generator["embedding"] + self.discriminator["embedding"]
            self.discriminator = self.discriminator | {"embedding": both}
        self.prepared, self.corrupted = prepared, corrupted

    def mlm(self, **changed):
        tokens, segments = self.prepared["masked_tokens"], self.prepared["segment_ids"]
        targets = dense_targets(self.prepared)
        return tiny_transformer.mlm_loss(self.generator | changed, tokens, segments, targets)

    def disc(self, **changed):
        originals, segments = self.prepared["tokens"], self.prepared["segment_ids"]
        params = self.discriminator | changed
        return tiny_transformer.discriminator_loss(params, self.corrupted, originals, segments)

    def by_table(self, which):
        """The gradient of a mean loss by the embeddings that its model reads, times N."""
        loss, params = getattr(self, which), self.generator
        params = params if which == "mlm" else self.discriminator
        tokens = (self.prepared["segment_ids"] != 0).sum()
        scale = tokens / loss()[1]
        return tiny_transformer.gradient(
            lambda table: scale * loss(embedding=table)[0], params["embedding"]
        )


@pytest.mark.parametrize("sharing", SHARINGS)
def test_losses_are_those_of_the_paper(sharing, step, batch):
    params, prepared, corrupted, ((total, (weight, metrics)), _) = step(sharing)
    hand = ByHand(params, prepared, corrupted, sharing)
    (mlm_sum, masked), (disc_sum, tokens, replaced, right) = hand.mlm(), hand.disc()
    # Some draws are the original, and count as such in the reference: it compares tokens.
    chosen = dense_targets(prepared) >= 0
    assert 0 < replaced < masked == chosen.sum()
    np.testing.assert_array_equal(corrupted[~chosen], batch["tokens"][~chosen])
    means = mlm_sum / masked, disc_sum / tokens
    assert weight == tokens == (batch["segment_ids"] != 0).sum()
    np.testing.assert_allclose(total / weight, means[0] + WEIGHT * means[1], rtol=1e-5)
    found = {name: value / weight for name, value in metrics.items()}
    expected = {
        "generator_loss": means[0],
        "discriminator_loss": means[1],
        "replaced": replaced / tokens,
        "discriminator_accuracy": right / tokens,
    }
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        np.testing.assert_allclose(found[name], value, rtol=1e-5, err_msg=name)


def assert_gradient(ours, theirs):
    np.testing.assert_allclose(ours, theirs, rtol=1e-4, atol=1e-4 * np.abs(theirs).max())


@pytest.mark.parametrize("sharing", SHARINGS)
def test_embeddings_get_the_gradients_of_the_paper(sharing, step):
    params, prepared, corrupted, (_, grads) = step(sharing)
    hand = ByHand(params, prepared, corrupted, sharing)
    of_mlm, of_disc = hand.by_table("mlm"), WEIGHT * hand.by_table("disc")
    assert np.abs(of_disc).max() > np.abs(of_mlm).max()  # it would be seen
    if sharing == "tied":
        assert "embedding" not in grads["generator"]
        assert_gradient(grads["discriminator"]["embedding"], of_mlm + of_disc)
    else:
        assert_gradient(grads["generator"]["embedding"], of_mlm)
        assert_gradient(grads["discriminator"]["embedding"], of_disc)


@pytest.mark.parametrize("sharing", ["none", "disentangled"])
def test_the_generator_is_trained_as_by_masked_language_modelling(sharing, step, batch):
    """All of its parameters: the gradient is that of `mlm` alone, of a mean over masked tokens."""
    params, _, _, ((_, (weight, _)), grads) = step(sharing)
    alone = mlm(GENERATOR, MASKING, mask_id=MASK, special_ids=(0, 1, 2, 3))

    def total(generator):
        weighted, _ = alone(generator, batch, jax.random.key(0))
        return weighted.sum / weighted.weight

    expected = jax.jit(jax.grad(total))(params["generator"])
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a / weight, b, rtol=1e-4, atol=1e-6),
        grads["generator"],
        jax.device_get(expected),
    )


def test_what_is_added_to_the_embeddings_starts_at_zero():
    declared = rtd_spec(GENERATOR, DISCRIMINATOR, "disentangled")
    params = spec.init(jax.random.key(0), declared)
    assert not np.any(params["discriminator"]["embedding"])
    np.testing.assert_array_equal(
        discriminator_params(params, "disentangled")["embedding"], params["generator"]["embedding"]
    )


def test_parts_are_ordinary_models(draw):
    """Of unequal widths, with all that may be shared: as `models.spec` declares them."""
    embedding = models.Embedding(norm=True, token_types=2)
    rest = {"embedding": embedding, "position": "learned", "max_length": S}
    narrow = config_of(
        models.Head("mlm", dense=True, bias=True),
        num_heads=2,
        **rest | {"embed_dim": 4, "embedding": models.Embedding(D, norm=True, token_types=2)},
    )
    wide = config_of(models.Head("rtd"), **rest)
    parts = ((narrow, generator_params), (wide, discriminator_params))
    for sharing in SHARINGS:
        declared = rtd_spec(narrow, wide, sharing)
        params = draw(declared)
        for config, part in parts:
            shapes = jax.tree.map(np.shape, part(params, sharing))
            assert shapes == spec.map_params(lambda param: param.shape, models.spec(config))
    tied = rtd_spec(narrow, wide, "tied")["generator"]
    assert not {"embedding", "positions", "token_types", "embedding_norm"} & tied.keys()
    assert "embedding_projection" in tied


@pytest.mark.parametrize("sharing", SHARINGS)
def test_a_prepared_batch_may_be_cut(sharing, step, batch):
    """Micro-batches with keys of their own add up to the batch that is not cut."""
    params, prepared, _, whole = step(sharing)
    one = jax.jit(functools.partial(with_gradient, loss_of(sharing)))
    parts = [
        one(params, {name: rows[part::4] for name, rows in prepared.items()}, jax.random.key(part))
        for part in range(4)
    ]
    added = jax.tree.map(lambda *x: sum(x), *parts)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=2e-5 * whole[0][0]),
        jax.device_get(added),
        whole,
    )


@pytest.mark.parametrize(
    "sharing",
    ["tied", *(pytest.param(s, marks=pytest.mark.slow) for s in ("none", "disentangled"))],
)
def test_a_mesh_of_every_axis_equals_one_device(sharing, batch, draw):
    configs = (
        config_of(config.head, num_heads=2, tied=sharing == "tied")
        for config in (GENERATOR, DISCRIMINATOR)
    )
    generator, discriminator = configs
    declared, key = rtd_spec(generator, discriminator, sharing), jax.random.key(3)
    params = draw(declared)
    one = jax.jit(functools.partial(with_gradient, loss_of(sharing, generator, discriminator)))
    alone = jax.device_get(one(params, batch, key))
    with jax.set_mesh(mesh.make_mesh(mesh.MeshConfig(2, 2, 2))):
        placed = jax.tree.map(
            lambda p, value: jax.device_put(value, mesh.named_sharding(p.axes)),
            declared,
            params,
            is_leaf=spec.is_param,
        )
        spread = jax.device_get(one(placed, mesh.shard_batch(batch), key))
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5 * alone[0][0]),
        spread,
        alone,
    )


def test_the_vocabulary_is_computed_at_masked_positions_only(batch, draw):
    large = {"vocab_size": 48}
    configs = [config_of(config.head, **large) for config in (GENERATOR, DISCRIMINATOR)]
    params = draw(rtd_spec(*configs, "disentangled"))
    one = functools.partial(with_gradient, loss_of("disentangled", *configs))
    text = str(jax.make_jaxpr(one)(params, batch, None))
    assert f"[{B},{MASKING.max_predictions(S)},48]" in text
    assert f"[{B},{S},48]" not in text and f"[{B * S},48]" not in text


def test_draws_follow_the_key_and_evaluation_has_its_own(batch, draw):
    params = draw(rtd_spec(GENERATOR, DISCRIMINATOR, "none"))
    one = jax.jit(lambda batch, key: loss_of("none")(params, batch, key)[0].sum)
    keys = (None, None, jax.random.key(1), jax.random.key(1), jax.random.key(2))
    losses = [float(one(batch, key)) for key in keys]
    assert losses[0] == losses[1] and losses[2] == losses[3]
    assert len(set(losses)) == 3
    # Equal masks, other seeds: other replacements.
    prepared = loss_of("none").prepare(batch, None)
    other = prepared | {"rtd_seeds": prepared["rtd_seeds"] + jnp.uint32(1)}
    assert one(prepared, None) == losses[0] and one(other, None) != losses[0]


def test_a_batch_of_padding_costs_nothing(batch, draw):
    params = draw(rtd_spec(GENERATOR, DISCRIMINATOR, "tied"))
    empty = batch | {"segment_ids": np.zeros((B, S), np.int32)}
    one = jax.jit(functools.partial(with_gradient, loss_of("tied")))
    (total, (weight, _)), grads = one(params, empty, jax.random.key(0))
    assert (total, weight) == (0, 0)
    assert all(jnp.all(x == 0) for x in jax.tree.leaves(grads))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("all",), "sharing='all': choose one of none, tied, disentangled"),
        (("none", DISCRIMINATOR), r"the generator's head\.kind is rtd; it must be mlm"),
        (("none", GENERATOR, GENERATOR), r"the discriminator's head\.kind is mlm; it must be rtd"),
        (
            ("none", GENERATOR, config_of(DISCRIMINATOR.head, vocab_size=17)),
            "vocabulary of 16 differs",
        ),
        (
            ("disentangled", config_of(GENERATOR.head, embed_dim=4)),
            r"embeddings of equal shape; the generator's are {'embedding': \(16, 4\)}",
        ),
    ],
)
def test_models_that_do_not_fit_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        loss_of(*arguments)
