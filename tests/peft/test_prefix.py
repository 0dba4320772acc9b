"""Prefixes: what they stand for, whom they reach, and what stays as it was."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from llmjax import mesh, models, peft, spec, tree
from llmjax.kernels.flash_attention import Mask, flash_attention_with_log_sum
from llmjax.models import Dropout
from llmjax.models import prefix as hook
from llmjax.objectives import clm
from llmjax.peft import PrefixConfig, prefix
from llmjax.sampling import SamplerConfig, generate
from tools.golden_models import CONFIGS

PLAIN, MADE = PrefixConfig(3), PrefixConfig(3, hidden_dim=8)
EITHER = (MADE, pytest.param(PLAIN, marks=pytest.mark.slow))  # the first becomes the second


@pytest.fixture
def with_prefix(draw):
    """`with_prefix(config, wanted)`: declarations and parameters, no bias of which is 0."""

    def make(config, wanted):
        declared = prefix.spec(models.spec(config), config, wanted)
        return declared, draw(declared)

    return make


@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_a_prefix_stands_for_a_text_in_front(family, request, with_prefix, draw):
    """Its keys and values are those that the base model would have had in its cache."""
    config = request.getfixturevalue(family)
    _, params = with_prefix(config, PrefixConfig(4))
    tokens = np.random.RandomState(0).randint(0, 64, (2, 12)).astype(np.int32)
    tokens[:, :4] = tokens[0, :4]
    filled = prefix.from_tokens(params, tokens[0, :4], config)

    @jax.jit
    def run(params, tokens):
        return models.apply(params, tokens, config)[0]

    expected = run(draw(models.spec(config)), tokens)[:, 4:]
    np.testing.assert_allclose(run(filled, tokens[:, 4:]), expected, 1e-4, 1e-5)


@pytest.mark.parametrize("causal", [True, False])
def test_every_query_sees_all_of_it(causal):
    """One softmax over prefix and tokens, in float64: grouped heads, segments, window and cap."""
    config = dataclasses.replace(
        CONFIGS["gemma2"], dtype="float64", embed_dim=32, num_heads=4, num_kv_heads=2, head_dim=8
    )
    random = np.random.RandomState(0)
    query, cap, scale = random.randn(2, 4, 9, 8), config.attention.cap, config.score_scale
    key, value = random.randn(2, 2, 2, 9, 8)
    before = {"prefix_key": random.randn(2, 5, 8), "prefix_value": random.randn(2, 5, 8)}
    segments = np.array([[1, 1, 1, 2, 2, 2, 2, 0, 0], [0, 3, 3, 3, 3, 3, 3, 3, 3]], np.int32)
    mask = Mask(jnp.asarray(segments), causal=causal, window=3)
    with jax.enable_x64(True):
        result = flash_attention_with_log_sum(query, key, value, mask, scale=scale, cap=cap)
        found = hook.joined(before, jnp.asarray(query), result, config)

    distance = np.arange(9)[:, None] - np.arange(9)
    near = (np.abs(distance) < 3) & ((distance >= 0) | (not causal))
    same = (segments[:, :, None] == segments[:, None]) & (segments[:, None] != 0)
    allowed = np.concatenate([np.ones((2, 9, 5), bool), near & same], axis=2)
    for row, head in np.ndindex(2, 4):
        keys = np.concatenate([before["prefix_key"][head // 2], key[row, head // 2]])
        values = np.concatenate([before["prefix_value"][head // 2], value[row, head // 2]])
        scores = cap * np.tanh(query[row, head] @ keys.T * scale / cap)
        weights = np.exp(scores) * allowed[row]
        expected = weights @ values / weights.sum(axis=1, keepdims=True)
        np.testing.assert_allclose(found[row, head], expected, rtol=1e-12, atol=1e-12)


def test_dropout_takes_pairs_with_the_prefix_too(gpt2):
    """Of queries that see nothing else, whose output channels are the weights themselves."""
    config = dataclasses.replace(gpt2, dropout=Dropout(attention=0.25))
    query = jnp.ones((512, 4, 4, 4))
    before = {"prefix_key": jnp.zeros((4, 4, 4)), "prefix_value": jnp.tile(jnp.eye(4), (4, 1, 1))}
    nothing = jnp.zeros_like(query), jnp.full(query.shape[:3], -jnp.inf)
    found = hook.joined(before, query, nothing, config, key=jax.random.key(0))
    kept = np.asarray(found) > 0
    np.testing.assert_allclose(found[kept], 0.25 / 0.75, rtol=1e-6)
    assert abs(kept.mean() - 0.75) < 5 * np.sqrt(0.75 * 0.25 / kept.size)
    whole = hook.joined(before, query, nothing, config)
    np.testing.assert_allclose(whole, 0.25, rtol=1e-6)


@pytest.mark.parametrize("family", ["gemma2", "bert"])
def test_packed_equals_unpacked(family, with_prefix, packed):
    config = CONFIGS[family]
    _, params = with_prefix(config, PLAIN)
    tokens = packed["tokens"] % config.vocab_size
    segments, positions = packed["segment_ids"], packed["positions"]
    alone, places = np.zeros((20, 16), np.int32), []
    there = np.zeros_like(alone)
    for row, segment in {(r, s) for (r, _), s in np.ndenumerate(segments) if s}:
        here = np.flatnonzero(segments[row] == segment)
        alone[len(places), : len(here)] = tokens[row, here]
        there[len(places), : len(here)] = 1
        places.append((row, here))
    assert len(places) > 15

    @jax.jit
    def run(tokens, segments, positions):
        return models.apply(params, tokens, config, segment_ids=segments, positions=positions)[0]

    together = run(tokens, segments, positions)
    apart = run(alone, there, np.tile(np.arange(16, dtype=np.int32), (20, 1)))
    for index, (row, here) in enumerate(places):
        np.testing.assert_allclose(together[row, here], apart[index, : len(here)], 1e-4, 1e-5)


@pytest.mark.parametrize("wanted", EITHER)
def test_cached_decoding_equals_the_full_pass(wanted, with_prefix):
    config = CONFIGS["gemma2"]
    _, params = with_prefix(config, wanted)
    tokens = np.random.RandomState(0).randint(0, 48, (2, 8)).astype(np.int32)
    whole = jax.jit(lambda params: models.apply(params, tokens, config)[0])(params)
    ready, cache = models.for_decoding(params, config), models.empty_cache(config, 2, 8)
    assert "prefix" not in ready
    run = jax.jit(lambda tokens, cache: models.apply(ready, tokens, config, cache=cache))
    found = []
    for part in (tokens[:, :6], tokens[:, 6:7], tokens[:, 7:]):
        hidden, cache = run(part, cache)
        found.append(hidden)
    np.testing.assert_allclose(np.concatenate(found, axis=1), whole, 1e-4, 1e-5)


@pytest.mark.parametrize("wanted", EITHER)
def test_the_limit_of_a_row_is_known_from_the_spec(wanted, with_prefix, gpt2, llama):
    assert [models.longest_row(tree, gpt2) for tree in with_prefix(gpt2, wanted)] == [13, 13]
    assert models.longest_row(with_prefix(llama, wanted)[0], llama) is None


@pytest.mark.parametrize("wanted", EITHER)
def test_generates_up_to_the_last_position(wanted, with_prefix, gpt2):
    """What the full pass finds likeliest; 16 positions hold a prefix of 3 and 13 tokens."""
    _, params = with_prefix(gpt2, wanted)
    prompt, key = [5, 9, 2, 7, 1], jax.random.key(0)
    greedy = {"sampler": SamplerConfig(temperature=0.0)}
    (found,) = generate(params, [prompt], gpt2, key, max_new_tokens=8, **greedy).tokens
    tokens = np.zeros((1, 13), np.int32)
    tokens[0, :5], tokens[0, 5:] = prompt, found
    hidden, _ = models.apply(params, tokens, gpt2)
    logits = models.logits(params, hidden, gpt2)[0, 4:-1]
    np.testing.assert_array_equal(found, np.argmax(logits, axis=-1))
    with pytest.raises(ValueError, match="max_new_tokens=9 exceeds the model's 13 learned"):
        generate(params, [prompt], gpt2, key, max_new_tokens=9, **greedy)


def test_gradient_against_finite_differences(with_prefix, packed, llama):
    config = dataclasses.replace(
        llama, dtype="float64", remat="dots", dropout=Dropout(attention=0.1)
    )
    with jax.enable_x64(True):
        declared, params = with_prefix(config, MADE)
        params = jax.tree.map(np.float64, params)
        new, old = tree.partition(params, peft.trained(declared))

        @jax.jit
        def loss(new):
            return clm(config)(tree.combine(new, old), packed, jax.random.key(1))[0].sum

        grads, random = jax.jit(jax.grad(loss))(new), np.random.RandomState(2)
        assert len(jax.tree.leaves(grads)) == 5
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


def test_only_the_prefix_trains(gpt2, packed, assert_bitwise):
    config = dataclasses.replace(gpt2, max_length=24)
    declared = prefix.spec(models.spec(config), config, PLAIN)
    base = spec.init(jax.random.key(0), models.spec(config))
    start = peft.add(base, declared, jax.random.key(1))
    assert_bitwise(peft.without(start, declared), base)
    new, old = tree.partition(start, peft.trained(declared))
    assert sum(leaf.size for leaf in jax.tree.leaves(new)) == 2 * 2 * 4 * 3 * 4
    optimizer = optax.adam(3e-2)

    @jax.jit
    def step(new, state):
        def loss(new):
            return clm(config)(tree.combine(new, old), packed, None)[0].sum

        value, grads = jax.value_and_grad(loss)(new)
        updates, state = optimizer.update(grads, state)
        return value, optax.apply_updates(new, updates), state

    state, losses, trained = optimizer.init(new), [], new
    for _ in range(8):
        value, trained, state = step(trained, state)
        losses.append(float(value))
    assert losses[-1] < losses[0]
    after = tree.combine(trained, old)
    assert_bitwise(peft.without(after, declared), base)
    assert not any(map(np.array_equal, jax.tree.leaves(new), jax.tree.leaves(trained)))


MESHES = {
    "rings": (mesh.MeshConfig(data=1, fsdp=2, tensor=2, context=2), PLAIN),
    "stages": (mesh.MeshConfig(data=1, fsdp=2, tensor=2, stage=2), MADE),
}


@pytest.mark.parametrize("name", ["rings", pytest.param("stages", marks=pytest.mark.slow)])
def test_eight_devices_equal_one(name, with_prefix, packed):
    """With windows, capped scores, grouped heads and dropout."""
    sizes, wanted = MESHES[name]
    base = CONFIGS["gemma2"]
    local = dataclasses.replace(base.attention, pattern=("local",))
    config = dataclasses.replace(base, attention=local, dropout=Dropout(attention=0.1))
    batch = packed | {"tokens": packed["tokens"] % config.vocab_size}
    batch |= {"targets": np.minimum(packed["targets"], config.vocab_size - 1)}
    declared, params = with_prefix(config, wanted)

    @jax.jit
    def run(params, batch):
        new, old = tree.partition(params, peft.trained(declared))

        def loss(new):
            total, _ = clm(config)(tree.combine(new, old), batch, jax.random.key(0))
            return total.sum / total.weight

        return jax.value_and_grad(loss)(new)

    expected = jax.device_get(run(params, batch))
    with jax.set_mesh(mesh.make_mesh(sizes, jax.devices())):
        placed = spec.move(params, declared)
        found = jax.device_get(run(placed, mesh.shard_batch(batch)))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, 1e-4, 1e-5), found, expected)


@pytest.mark.parametrize("wanted", EITHER)
def test_unrolled_layers_equal_stacked_ones(wanted, with_prefix, llama):
    _, params = with_prefix(llama, wanted)
    unrolled = dataclasses.replace(llama, scan_layers=False)
    declared = prefix.spec(models.spec(unrolled), unrolled, wanted)
    listed = params | {"layers": tree.unstack(params["layers"])}
    assert jax.tree.map(jnp.shape, listed) == spec.map_params(lambda p: p.shape, declared)
    tokens = np.random.RandomState(0).randint(0, 64, (2, 8)).astype(np.int32)
    found, expected = (
        jax.jit(lambda params, config=config: models.apply(params, tokens, config)[0])(of)
        for config, of in ((unrolled, listed), (llama, params))
    )
    np.testing.assert_allclose(found, expected, 1e-5, 1e-6)


def test_bad_wishes_are_errors(gpt2, with_prefix):
    with pytest.raises(ValueError, match="prefix.length=0"):
        PrefixConfig(0)
    config = CONFIGS["deberta"]
    with pytest.raises(ValueError, match="DeBERTa's attention uses relative positions"):
        prefix.spec(models.spec(config), config, PLAIN)
    with pytest.raises(
        ValueError, match="prefix.length=16: it uses up the model's 16 learned positions"
    ):
        prefix.spec(models.spec(gpt2), gpt2, PrefixConfig(16))
    once, params = with_prefix(gpt2, PLAIN)
    for wanted in (PLAIN, MADE):
        with pytest.raises(ValueError, match="already has a prefix"):
            prefix.spec(once, gpt2, wanted)
    with pytest.raises(ValueError, match="14 tokens after a prefix of 3 exceed the 16"):
        models.apply(params, np.zeros((1, 14), np.int32), gpt2)
    with pytest.raises(ValueError, match=r"\(4,\) tokens for a plain prefix of 3"):
        prefix.from_tokens(params, np.zeros(4, np.int32), gpt2)
