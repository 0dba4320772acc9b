"""Law 4: cached decoding equals the full forward pass. And rows, stops, meshes, programs."""

import dataclasses
import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from llmjax import mesh, models, sampling, tree, weights
from llmjax import spec as specs
from llmjax.data.tokenizer import ByteTokenizer
from llmjax.sampling import SamplerConfig, decode, stops
from llmjax.sampling.prompts import as_rows
from llmjax.sampling.slots import Slots, Writing

GREEDY = SamplerConfig(temperature=0.0)
DRAWN = SamplerConfig(temperature=0.9, top_k=30, top_p=0.95, repetition_penalty=1.2)
NEW = 6


@functools.cache
def params_of(config: models.ModelConfig):
    """Larger than initial weights: the logits are far apart."""
    params = specs.init(jax.random.key(0), models.spec(config))
    return jax.tree.map(lambda leaf: 5.0 * leaf if leaf.ndim > 1 else leaf, params)


@functools.partial(jax.jit, static_argnames="config")
def full_log_probs(params, tokens, config):
    """Log-probabilities [B, S, V] of the next token by the forward pass without a cache."""
    hidden, _ = models.apply(params, tokens, config)
    return jax.nn.log_softmax(models.logits(params, hidden, config))


@pytest.fixture(params=["gpt2", "llama"])
def config(request) -> models.ModelConfig:
    return request.getfixturevalue(request.param)


@pytest.fixture(scope="module")
def prompts() -> list[list[int]]:
    random = np.random.RandomState(1)
    return [random.randint(1, 64, length).tolist() for length in (5, 1, 9, 2)]


def write(config, prompts, sampler=GREEDY, **changes):
    arguments = {"max_new_tokens": NEW, "sampler": sampler} | changes
    return sampling.generate(params_of(config), prompts, config, jax.random.key(7), **arguments)


@pytest.mark.parametrize("sampler", [GREEDY, DRAWN], ids=["greedy", "drawn"])
def test_decoding_equals_the_full_forward_pass(config, prompts, sampler):
    written = write(config, prompts, sampler)
    rows = [prompt + row.tolist() for prompt, row in zip(prompts, written.tokens, strict=True)]
    padded = np.zeros((len(rows), 16), np.int32)
    for index, row in enumerate(rows):
        padded[index, : len(row)] = row
    expected = np.asarray(full_log_probs(params_of(config), padded, config))
    for index, prompt in enumerate(prompts):
        steps = expected[index, len(prompt) - 1 : len(prompt) - 1 + NEW]
        chosen = steps[np.arange(NEW), written.tokens[index]]
        np.testing.assert_allclose(written.log_probs[index], chosen, atol=2e-5)
        if sampler == GREEDY:
            np.testing.assert_array_equal(written.tokens[index], steps.argmax(-1))
    assert written.log_probs.dtype == np.float32
    np.testing.assert_array_equal(written.lengths, NEW)


def test_the_cache_gives_the_logits_of_the_forward_pass(config):
    """In pieces of several tokens and of one, with padding that leaves no trace."""
    tokens = np.random.RandomState(2).randint(1, 64, (2, 12))
    params = params_of(config)

    @jax.jit
    def append(piece, counted, cache):
        hidden, cache = models.apply(params, piece, config, segment_ids=counted, cache=cache)
        return jax.nn.log_softmax(models.logits(params, hidden, config)), cache

    expected = full_log_probs(params, tokens, config)
    cache = models.empty_cache(config, 2, 16)
    for start, stop in ((0, 5), (5, 6), (6, 12)):
        piece = np.pad(tokens[:, start:stop], ((0, 0), (0, 2)), constant_values=9)
        counted = (np.arange(stop - start + 2) < stop - start).astype(np.int32)[None].repeat(2, 0)
        found, cache = append(piece, counted, cache)
        np.testing.assert_allclose(found[:, : stop - start], expected[:, start:stop], atol=2e-5)
    np.testing.assert_array_equal(cache.length, 12)


def test_parameters_for_decoding_are_the_same_weights(config):
    params = params_of(config)
    ready = models.for_decoding(params, config)
    assert models.for_decoding(ready, config) is ready
    plain = jax.tree.map(
        weights.materialize, ready, is_leaf=lambda leaf: isinstance(leaf, weights.Transposed)
    )
    plain["layers"] = tree.stack(plain["layers"])
    jax.tree.map(np.testing.assert_array_equal, plain, params)
    assert "head" not in params or isinstance(ready["head"], weights.Transposed)
    assert isinstance(ready["layers"][0]["attention"]["out"], weights.Transposed)


def test_layers_in_a_list_are_laid_out_as_a_stack_is(config):
    """An unrolled model is trained as a list: that alone does not make it ready."""
    params = params_of(config)
    expected = models.for_decoding(params, config)
    ready = models.for_decoding(params | {"layers": tree.unstack(params["layers"])}, config)
    assert jax.tree.structure(ready) == jax.tree.structure(expected)
    jax.tree.map(np.testing.assert_array_equal, ready, expected)


@pytest.mark.parametrize("sampler", [GREEDY, DRAWN], ids=["greedy", "drawn"])
def test_rows_do_not_know_of_each_other(llama, prompts, sampler):
    together = write(llama, prompts, sampler)
    others = [prompts[0], [3] * 12, [4, 4], prompts[3]]
    apart = write(llama, others, sampler)
    for row in (0, 3):
        np.testing.assert_array_equal(apart.tokens[row], together.tokens[row])
        np.testing.assert_allclose(apart.log_probs[row], together.log_probs[row], atol=2e-5)
    alone = write(llama, [prompts[0]], sampler)
    np.testing.assert_array_equal(alone.tokens[0], together.tokens[0])


def test_the_key_decides(llama, prompts):
    first, second = (write(llama, prompts, SamplerConfig()) for _ in range(2))
    np.testing.assert_array_equal(first.tokens, second.tokens)
    other = sampling.generate(
        params_of(llama),
        prompts,
        llama,
        jax.random.key(8),
        max_new_tokens=NEW,
        sampler=SamplerConfig(),
    )
    assert (other.tokens != first.tokens).any()
    same = write(llama, [[5, 6]] * 4, SamplerConfig(temperature=2.0))
    assert len({tuple(row) for row in same.tokens.tolist()}) > 1


def test_samples_share_a_prompt_and_not_their_draws(llama, prompts, monkeypatch):
    read = []
    fill = decode.fill
    monkeypatch.setattr(decode, "fill", lambda *args: read.append(args[3]) or fill(*args))
    sampler = SamplerConfig(temperature=2.0)
    several = write(llama, prompts, sampler, samples=3)
    # One call read each prompt once.
    np.testing.assert_array_equal(read, [[len(prompt) for prompt in prompts]])
    assert len(np.unique(several.tokens, axis=0)) == 12
    # The first of three is the only one of one, and a prompt's rows stand together.
    single = write(llama, prompts, sampler)
    np.testing.assert_array_equal(several.tokens[::3], single.tokens)
    np.testing.assert_allclose(several.log_probs[::3], single.log_probs, atol=1e-5)
    greedy = write(llama, prompts, GREEDY, samples=3)
    np.testing.assert_array_equal(greedy.tokens, write(llama, prompts).tokens.repeat(3, axis=0))


def test_a_key_for_each_prompt(llama, prompts):
    """Makes rows that do not depend on which prompts they are written with."""
    keys = jax.random.split(jax.random.key(3), 4)
    arguments = {"max_new_tokens": NEW, "sampler": SamplerConfig(), "samples": 2}
    params = params_of(llama)
    together = sampling.generate(params, prompts, llama, keys, **arguments)
    alone = sampling.generate(params, prompts[2:3], llama, keys[2:3], **arguments)
    np.testing.assert_array_equal(alone.tokens, together.tokens[4:6])
    with pytest.raises(ValueError, match="keys .3,. for 4 prompts"):
        sampling.generate(params, prompts, llama, keys[:3], **arguments)


def test_rows_end_at_stop_tokens(llama, prompts):
    free = write(llama, prompts)
    stops = (int(free.tokens[0, 2]), int(free.tokens[2, 4]))
    found = write(llama, prompts, stop_tokens=stops)
    for row in range(4):
        ends = [n for n, token in enumerate(free.tokens[row], start=1) if token in stops]
        length = min(ends, default=NEW)
        assert found.lengths[row] == length
        np.testing.assert_array_equal(found.tokens[row, :length], free.tokens[row, :length])
        assert not found.tokens[row, length:].any()
        assert not found.log_probs[row, length:].any()


def test_rows_end_at_sequences_of_tokens(llama, prompts):
    free = write(llama, prompts).tokens
    sequence, single = free[0, 1:4].tolist(), int(free[2, 4])
    found = write(llama, prompts, stop_tokens=(sequence, single))
    for row in range(4):
        text = free[row].tolist()
        ends = [n for n in range(1, NEW + 1) if text[:n][-3:] == sequence or text[n - 1] == single]
        length = min(ends, default=NEW)
        assert found.lengths[row] == length
        np.testing.assert_array_equal(found.tokens[row, :length], text[:length])
    # The end of a prompt does not count towards it.
    again = write(llama, [prompts[0] + free[0, :2].tolist()], stop_tokens=(sequence,))
    assert again.lengths == NEW


def test_the_loop_ends_with_the_last_row(llama, prompts):
    ends = np.unique(write(llama, prompts).tokens[:, 1])
    how = Writing(llama, GREEDY, stops.automata(ends, (), None, 64), NEW)
    rows = as_rows(prompts)
    slots = Slots(params_of(llama), rows, jax.random.key(7), how, samples=1, count=4)
    slots.fill()
    slots.write(NEW, ended=4)
    lengths = np.asarray(slots.state.lengths)
    assert slots.state.done.all()
    assert max(lengths) <= 2
    # Rows that have ended leave the cache alone.
    known = np.array([len(row) - 1 for row in rows])
    np.testing.assert_array_equal(slots.state.cache.length, known + lengths)


def test_calls_of_similar_size_share_their_programs(llama, prompts, compilations):
    write(llama, prompts, DRAWN)
    longer = [[1, *prompt, 2] for prompt in prompts]
    compilations.clear()
    write(llama, longer, DRAWN, max_new_tokens=NEW - 1, stop_tokens=(3, (4, 5)))
    assert not compilations


def test_a_repeated_token_is_penalised_in_prompt_and_text(llama):
    """With a penalty beyond all logits, greedy decoding never writes a token twice."""
    prompts = [[1, 2, 3], [7]]
    sampler = dataclasses.replace(GREEDY, repetition_penalty=1e4)
    written = write(llama, prompts, sampler, max_new_tokens=12)
    for prompt, tokens in zip(prompts, written.tokens.tolist(), strict=True):
        assert len({*prompt, *tokens}) == len(prompt) + 12


@pytest.mark.parametrize(
    "sizes", [{"tensor": 2, "data": 2}, {"fsdp": 8}, {"data": 1}], ids=["tensor", "fsdp", "one"]
)
def test_a_mesh_writes_the_same(llama, prompts, sizes):
    expected = write(llama, prompts, DRAWN)
    devices = jax.devices()[: math.prod(sizes.values())]
    with jax.set_mesh(mesh.make_mesh(mesh.MeshConfig(**sizes), devices)):
        shardings = jax.tree.map(lambda leaf: leaf.sharding, specs.abstract(models.spec(llama)))
        params = jax.device_put(jax.device_get(params_of(llama)), shardings)
        found = sampling.generate(
            params, prompts, llama, jax.random.key(7), max_new_tokens=NEW, sampler=DRAWN
        )
    np.testing.assert_array_equal(found.tokens, expected.tokens)
    np.testing.assert_allclose(found.log_probs, expected.log_probs, atol=2e-5)


def test_half_precision_is_cast_once(llama):
    config = dataclasses.replace(llama, dtype="bfloat16")
    ready = models.for_decoding(params_of(llama), config)
    assert ready["embedding"].dtype == jnp.bfloat16
    assert ready["layers"][0]["mlp"]["up"].values.dtype == jnp.bfloat16
    assert ready["layers"][0]["mlp_norm"]["scale"].dtype == jnp.float32


@pytest.mark.parametrize(
    ("prompts", "changes", "message"),
    [
        ([], {}, "at least one prompt"),
        ([[1], []], {}, "prompt 1 has no tokens"),
        ([[1], [0.5]], {}, "prompt 1 is float64: give token ids"),
        ([[1, 64]], {}, "vocabulary is 0 to 63"),
        ([[-1]], {}, "tokens from -1"),
        ([[1]], {"max_new_tokens": 0}, "max_new_tokens=0"),
        ([[1] * 11], {}, "11 tokens.*16 learned positions"),
        ([[1]], {"stop_tokens": (64,)}, "stop token 64"),
        ([[1]], {"stop_tokens": ((1, -1),)}, "stop token -1"),
        ([[1]], {"stop_tokens": ((),)}, "empty sequence"),
        ([[1]], {"stop_texts": ("",), "tokenizer": ByteTokenizer()}, "empty text"),
        ([[1]], {"stop_texts": ("a",)}, "need a tokenizer"),
        ([[1]], {"stop_texts": "ab", "tokenizer": ByteTokenizer()}, "a list of texts"),
        ([[1]], {"samples": 0}, "samples=0"),
        ([[1]], {"slots": 0}, "slots=0"),
    ],
)
def test_what_cannot_be_is_refused(gpt2, prompts, changes, message):
    with pytest.raises(ValueError, match=message):
        write(gpt2, prompts, **changes)


@pytest.mark.parametrize(
    ("key", "message"),
    [
        (jax.random.key_data(jax.random.key(0)), "key is a plain uint32 array"),
        (jax.random.split(jax.random.key(0), 3), r"keys \(3,\) for 2 prompts"),
    ],
)
def test_keys_that_do_not_fit_are_refused(gpt2, key, message):
    with pytest.raises(ValueError, match=message):
        sampling.generate(params_of(gpt2), [[1], [2]], gpt2, key, max_new_tokens=2, sampler=GREEDY)


def test_the_learned_positions_can_be_filled(gpt2):
    assert write(gpt2, [[1] * 10]).lengths == [6]


def test_a_single_row_on_a_mesh_of_one_device(llama, prompts):
    """As the entry points sample: an axis of one row is easily forgotten."""
    expected = write(llama, prompts[:1], GREEDY)
    with jax.set_mesh(mesh.make_mesh(mesh.MeshConfig(), jax.devices()[:1])):
        shardings = jax.tree.map(lambda leaf: leaf.sharding, specs.abstract(models.spec(llama)))
        params = jax.device_put(jax.device_get(params_of(llama)), shardings)
        found = sampling.generate(
            params, prompts[:1], llama, jax.random.key(7), max_new_tokens=NEW, sampler=GREEDY
        )
    np.testing.assert_array_equal(found.tokens, expected.tokens)
