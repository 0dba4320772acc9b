"""Continuous batches write what each prompt alone would, whoever shares the slots."""

import jax
import numpy as np
import pytest

from llmjax import mesh, models, sampling
from llmjax import spec as specs
from llmjax.sampling import SamplerConfig, decode, stops
from llmjax.sampling.prompts import as_rows
from llmjax.sampling.slots import Slots, Writing

SAMPLER = SamplerConfig(temperature=1.5, top_p=0.95, repetition_penalty=1.1)
ARGUMENTS = {
    "max_new_tokens": 12,
    "sampler": SAMPLER,
    "samples": 2,
    "stop_tokens": (7, 9, 11, (20, 30)),
}
KEY = jax.random.key(7)


@pytest.fixture(scope="module")
def params(llama):
    drawn = specs.init(jax.random.key(0), models.spec(llama))
    larger = jax.tree.map(lambda leaf: 5.0 * leaf if leaf.ndim > 1 else leaf, drawn)
    return models.for_decoding(larger, llama)


@pytest.fixture(scope="module")
def prompts() -> list[list[int]]:
    random = np.random.RandomState(1)
    lengths = [3, 17, 5, 1, 9, 2, 20, 4, 6]
    return [random.randint(1, 64, length).tolist() for length in lengths]


@pytest.fixture(scope="module")
def expected(llama, params, prompts) -> dict[tuple[int, int], sampling.Rollout]:
    """Each prompt alone, by its own key."""
    rows = {}
    for index, prompt in enumerate(prompts):
        key = jax.random.fold_in(KEY, index)[None]
        for row in sampling.rollouts(params, [prompt], llama, key, **ARGUMENTS):
            rows[index, row.sample] = row
    lengths = {len(row.tokens) for row in rows.values()}
    assert len(lengths) > 4  # uneven
    return rows


def check(found, expected) -> None:
    assert sorted((row.prompt, row.sample) for row in found) == sorted(expected)
    for row in found:
        alone = expected[row.prompt, row.sample]
        np.testing.assert_array_equal(row.tokens, alone.tokens)
        np.testing.assert_allclose(row.log_probs, alone.log_probs, atol=1e-5)


@pytest.mark.parametrize(("slots", "refill"), [(1, None), (4, 1), (4, 3), (7, 2), (None, None)])
def test_slots_change_nothing(llama, params, prompts, expected, slots, refill):
    found = sampling.rollouts(params, prompts, llama, KEY, slots=slots, refill=refill, **ARGUMENTS)
    check(list(found), expected)


def test_generate_puts_them_in_order(llama, params, prompts, expected):
    found = sampling.generate(params, prompts, llama, KEY, slots=4, **ARGUMENTS)
    for place, (index, row) in enumerate(sorted(expected.items())):
        assert divmod(place, 2) == index
        assert found.lengths[place] == len(row.tokens)
        np.testing.assert_array_equal(found.tokens[place, : len(row.tokens)], row.tokens)
        assert not found.tokens[place, len(row.tokens) :].any()


def test_short_rows_come_before_long_ones(llama, params, prompts, expected):
    """And while they do, the rest is not written yet: the iterator is lazy."""
    found = sampling.rollouts(params, prompts, llama, KEY, slots=4, refill=1, **ARGUMENTS)
    first = next(found)
    begun = [expected[prompt, sample] for prompt in (0, 1) for sample in (0, 1)]
    assert len(first.tokens) == min(len(row.tokens) for row in begun)


def test_slots_are_kept_busy(llama, params, prompts, expected, monkeypatch):
    """Steps of the device are close to the tokens there are over the slots."""
    steps = []
    step = decode.decode

    def counted(params, state, *args, **limits):
        before = np.asarray(state.lengths)
        state = step(params, state, *args, **limits)
        steps.append((np.asarray(state.lengths) - before).max())
        return state

    monkeypatch.setattr(decode, "decode", counted)
    list(sampling.rollouts(params, prompts, llama, KEY, slots=4, refill=1, **ARGUMENTS))
    lengths = [len(row.tokens) for _, row in sorted(expected.items())]
    ideal = sum(lengths) / 4
    batches = sum(max(lengths[at : at + 4]) for at in range(0, len(lengths), 4))
    assert sum(steps) <= ideal + max(lengths)
    assert sum(steps) < batches


def test_the_cache_is_used_up(llama, params, prompts):
    """Filling and writing work in the memory that they are given, and hold no second cache."""
    how = Writing(llama, SAMPLER, stops.automata((), (), None, 64), 12)
    slots = Slots(params, as_rows(prompts), KEY, how, samples=1, count=4)
    for work in (slots.fill, lambda: slots.write(3, ended=4)):
        before = jax.tree.leaves(slots.state.cache.layers)
        work()
        assert all(leaf.is_deleted() for leaf in before)


def test_steady_state_compiles_nothing(llama, params, prompts, compilations):
    def run(prompts, key):
        list(sampling.rollouts(params, prompts, llama, key, slots=4, refill=1, **ARGUMENTS))

    run(prompts, KEY)
    compilations.clear()
    run(prompts[::-1], jax.random.key(8))
    assert not compilations


@pytest.mark.parametrize("sizes", [{"data": 2, "tensor": 2}, {"data": 2, "fsdp": 4}])
def test_a_mesh_writes_the_same(llama, params, prompts, expected, sizes):
    devices = jax.devices()[: np.prod(list(sizes.values()))]
    plain = specs.init(jax.random.key(0), models.spec(llama))
    with jax.set_mesh(mesh.make_mesh(mesh.MeshConfig(**sizes), devices)):
        shardings = jax.tree.map(lambda leaf: leaf.sharding, specs.abstract(models.spec(llama)))
        larger = jax.tree.map(lambda leaf: 5.0 * leaf if leaf.ndim > 1 else leaf, plain)
        placed = jax.device_put(jax.device_get(larger), shardings)
        found = sampling.rollouts(placed, prompts, llama, KEY, slots=6, **ARGUMENTS)
        check(list(found), expected)
