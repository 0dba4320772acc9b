"""Samplers equal their definitions in numpy, ties and split vocabularies included."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from llmjax import mesh
from llmjax.sampling import SamplerConfig, samplers

B, V = 4, 64


@pytest.fixture(scope="module")
def logits() -> np.ndarray:
    values = np.random.default_rng(0).normal(scale=3.0, size=(B, V)).astype(np.float32)
    values[1, 5] = values[1].max() + 1.0  # one token far above
    values[2] = np.round(values[2])  # ties
    return values


def softmax(x: np.ndarray) -> np.ndarray:
    weights = np.exp(x.astype(np.float64) - x.max(-1, keepdims=True))
    return weights / weights.sum(-1, keepdims=True)


@pytest.mark.parametrize("k", [1, 2, 7, V, V + 1])
def test_top_k_keeps_what_is_not_below_the_kth(logits, k):
    kept = np.asarray(samplers.top_k(logits, k))
    kth = np.sort(logits, axis=-1)[:, -min(k, V)]
    np.testing.assert_array_equal(kept, np.where(logits >= kth[:, None], logits, -np.inf))


@pytest.mark.parametrize("p", [1e-6, 0.1, 0.5, 0.9, 0.999])
def test_top_p_keeps_the_fewest_that_have_the_mass(logits, p):
    kept = np.isfinite(np.asarray(samplers.top_p(logits, p)))
    probabilities = softmax(logits)
    for row in range(B):
        mass = probabilities[row][kept[row]].sum()
        least = probabilities[row][kept[row]].min()
        assert mass >= p - 1e-6
        # Nothing more likely is left out, and without the least likely it would not be enough.
        assert kept[row].sum() == (probabilities[row] >= least * (1 - 1e-6)).sum()
        assert probabilities[row][probabilities[row] > least * (1 + 1e-6)].sum() < p


@pytest.mark.parametrize("p", [1e-6, 0.05, 0.3, 1.0])
def test_min_p_keeps_a_share_of_the_likeliest(logits, p):
    kept = np.isfinite(np.asarray(samplers.min_p(logits, p)))
    share = softmax(logits)
    np.testing.assert_array_equal(kept, share >= p * share.max(-1, keepdims=True) * (1 - 1e-6))
    np.testing.assert_array_equal(kept, np.isfinite(samplers.min_p(logits + 5.0, p)))


def test_filters_leave_the_extremes_of_float32_in_order():
    x = np.array([[np.inf, 3e38, 1.0, 1e-40, 0.0, -1e-40, -2.0, -3e38]], np.float32)
    for k in range(1, 8):
        assert np.isfinite(samplers.top_k(x, k)[0, 1:]).sum() == k - 1


def test_the_penalty_is_that_of_ctrl(logits):
    seen = np.random.default_rng(1).random((B, V)) < 0.5
    found = samplers.penalize(logits, seen, 1.3)
    punished = np.where(logits > 0, logits / np.float32(1.3), logits * np.float32(1.3))
    np.testing.assert_allclose(found, np.where(seen, punished, logits), rtol=1e-6)
    with pytest.raises(ValueError, match="needs `seen`"):
        samplers.warp(logits, SamplerConfig(repetition_penalty=1.3))


def test_the_parts_are_composed_in_order(logits):
    seen = np.arange(V)[None] % 2 == np.zeros((B, 1))
    sampler = SamplerConfig(temperature=0.5, top_k=20, top_p=0.8, repetition_penalty=1.2)
    expected = samplers.penalize(logits, seen, 1.2) / 0.5
    expected = samplers.top_p(samplers.top_k(expected, 20), 0.8)
    np.testing.assert_allclose(samplers.warp(logits, sampler, seen), expected, rtol=1e-6)


@pytest.mark.parametrize("sampler", [SamplerConfig(temperature=0.0), SamplerConfig(top_k=1)])
def test_greedy_takes_the_first_of_the_largest(logits, sampler):
    keys = jax.random.split(jax.random.key(0), B)
    tied = np.concatenate([logits, np.zeros((1, V), np.float32)])
    found = samplers.sample(keys, tied, sampler)
    np.testing.assert_array_equal(found, tied.argmax(-1))


def exact(row: np.ndarray, seen: np.ndarray, sampler: SamplerConfig) -> np.ndarray:
    """The distribution in float64, by the definitions and one filter after the other."""
    logits = row.astype(np.float64)
    penalty = sampler.repetition_penalty
    logits = np.where(seen, np.where(logits > 0, logits / penalty, logits * penalty), logits)
    logits = logits / sampler.temperature
    order = np.argsort(-logits)
    if sampler.top_k:
        logits[order[sampler.top_k :]] = -np.inf
    before = np.cumsum(softmax(logits)[order]) - softmax(logits)[order]
    logits[order[before >= sampler.top_p]] = -np.inf
    chances = softmax(logits)
    chances[chances < sampler.min_p * chances.max()] = 0.0
    return chances / chances.sum()


# The 99.9th percentile of chi-square by degrees of freedom.
CRITICAL = {1: 10.83, 2: 13.82, 3: 16.27, 4: 18.47, 5: 20.52, 6: 22.46, 7: 24.32, 11: 31.26}


@pytest.mark.parametrize(
    ("sampler", "filters"),
    [
        (SamplerConfig(), False),
        (SamplerConfig(temperature=0.6), False),
        (SamplerConfig(repetition_penalty=1.8), False),
        (SamplerConfig(top_k=5), True),
        (SamplerConfig(top_p=0.8), True),
        (SamplerConfig(min_p=0.1), True),
        (SamplerConfig(1.5, 9, 0.8, 1.8, 0.3), True),
    ],
    ids=["none", "temperature", "penalty", "top_k", "top_p", "min_p", "all"],
)
def test_draws_follow_the_exact_distribution(sampler, filters):
    draws, size = 20_000, 12
    row = (0.6 * np.random.default_rng(3).normal(size=size)).astype(np.float32)
    seen = np.arange(size) % 3 == 0
    rows, mask = (jnp.broadcast_to(x, (draws, size)) for x in (row, seen))
    keys = jax.random.split(jax.random.key(4), draws)
    tokens = jax.jit(functools.partial(samplers.sample, sampler=sampler))(keys, rows, seen=mask)
    counts = np.bincount(tokens, minlength=size)
    expected = draws * exact(row, seen, sampler)
    likely = expected > 0
    assert likely.all() != filters
    assert not counts[~likely].any()
    chi_square = np.sum((counts - expected)[likely] ** 2 / expected[likely])
    assert chi_square < CRITICAL[likely.sum() - 1]


def _tree_sum(weights):
    """A running sum in the order in which accelerators add."""
    return jax.lax.associative_scan(jnp.add, weights)


@pytest.mark.parametrize("running_sum", [jnp.cumsum, _tree_sum])
def test_no_random_number_draws_what_is_excluded(monkeypatch, running_sum):
    """Not even those at the borders of tokens and of blocks of 128, where sums are rounded."""
    random = np.random.RandomState(0)
    logits = np.log(random.rand(1024).astype(np.float32) ** 4)
    logits[random.rand(1024) < 0.4] = -np.inf
    borders = np.cumsum(np.exp(logits.astype(np.float64)))
    borders = (borders[:-1] / borders[-1]).astype(np.float32)
    below, above = (np.nextafter(borders, np.float32(end)) for end in (0, 1))
    numbers = np.concatenate([np.array([0, 1], np.float32), borders, below, above])
    monkeypatch.setattr(jnp, "cumsum", running_sum)
    monkeypatch.setattr(jax.random, "uniform", lambda number: number)
    rows = np.broadcast_to(logits, (len(numbers), len(logits)))
    found = jax.jit(functools.partial(samplers.sample, sampler=SamplerConfig()))(numbers, rows)
    assert np.isfinite(logits[found]).all()


@pytest.mark.parametrize("sampler", [SamplerConfig(), SamplerConfig(1.2, 9, 0.8, 1.4, 0.1)])
def test_a_split_vocabulary_gives_the_same_tokens(logits, sampler):
    seen = np.asarray(logits) > 2.0
    keys = jax.random.split(jax.random.key(5), B)
    draw = jax.jit(functools.partial(samplers.sample, sampler=sampler))
    alone = draw(keys, logits, seen=seen)

    @jax.jit
    def placed(keys, logits, seen):
        logits, seen = (mesh.place(x, samplers.LOGITS) for x in (logits, seen))
        return draw(mesh.place(keys, ("batch",)), logits, seen=seen)

    with jax.set_mesh(mesh.make_mesh(mesh.MeshConfig(data=2, tensor=4))):
        np.testing.assert_array_equal(placed(keys, logits, seen), alone)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("temperature", -0.1),
        ("temperature", float("nan")),
        ("temperature", float("inf")),
        ("top_k", -1),
        ("top_p", 0.0),
        ("top_p", 1.1),
        ("min_p", -0.1),
        ("min_p", 1.1),
        ("min_p", float("nan")),
        ("repetition_penalty", 0.0),
        ("repetition_penalty", float("nan")),
    ],
)
def test_numbers_that_mean_nothing_are_refused(name, value):
    with pytest.raises(ValueError, match=f"{name}={value}"):
        SamplerConfig(**{name: value})
