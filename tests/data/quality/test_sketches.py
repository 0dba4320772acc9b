"""Sketches are exact while they can be, else near the truth, and blind to how a corpus is cut."""

import collections
import pickle

import numpy as np
import pytest
import scipy.stats

from llmjax.data.quality.sketches import (
    Buckets,
    Distinct,
    Sample,
    effective_number,
    entropy,
    hash_text,
)


def keys(count, seed=0):
    return np.random.default_rng(seed).integers(2**64, size=count, dtype=np.uint64)


def distinct(parts, size):
    sketch = Distinct(size)
    for part in parts:
        sketch.add(part)
    return sketch


def test_distinct_is_exact_below_its_size():
    words = [f"word {number % 300}" for number in range(1000)]
    sketch = distinct([np.array([hash_text(word)], np.uint64) for word in words], 512)
    assert sketch.count == len(set(words))
    assert sketch.repeated == 1 - 300 / 1000
    assert Distinct(8).repeated is None


def test_distinct_is_near_the_truth_above():
    """Relative errors have mean 0 and the standard deviation that Beyer et al. 2007 give."""
    size, truth = 256, 20_000
    errors = [
        distinct(np.array_split(np.tile(keys(truth, seed), 2), 7), size).count / truth - 1
        for seed in range(200)
    ]
    deviation = (size - 2) ** -0.5
    assert abs(np.mean(errors)) < 4 * deviation / 200**0.5
    assert 0.8 < np.std(errors) / deviation < 1.2


@pytest.mark.parametrize("size", [64, 4096])
def test_distinct_is_the_same_however_it_is_cut(size):
    found = keys(6000) >> np.uint64(1) << np.uint64(1)
    whole = distinct([found], size)
    rng = np.random.default_rng(1)
    for _ in range(5):
        cuts = np.sort(rng.integers(6000, size=4))
        parts = [distinct([part], size) for part in np.split(rng.permutation(found), cuts)]
        joined = Distinct(size)
        for part in parts:
            joined.merge(pickle.loads(pickle.dumps(part)))
        assert (joined.count, joined.total) == (whole.count, whole.total)


def test_a_sample_has_the_lowest_keys_however_it_is_cut():
    offered = [int(key) for key in keys(2000)] * 2
    lowest = sorted(set(offered))[:37]
    rng = np.random.default_rng(2)
    for parts in (1, 2, 9):
        joined = Sample(37)
        for part in np.array_split(rng.permutation(np.array(offered, np.uint64)), parts):
            sample = Sample(37)
            for key in part:
                sample.add(int(key), lambda key=key: f"item {key}")
            joined.merge(sample)
        assert joined.items() == [(key, f"item {key}") for key in lowest]


def test_items_that_are_not_kept_are_not_made():
    made = []
    sample = Sample(3)
    for key in range(100):
        sample.add(key, lambda key=key: made.append(key))
    assert len(made) == 6
    assert [key for key, _ in sample.items()] == [0, 1, 2]


@pytest.mark.parametrize("counts", [[1] * 8, [3, 1], [5, 4, 3, 2, 1], [7]])
def test_entropy(counts):
    expected = scipy.stats.entropy(counts, base=2)
    assert entropy(np.array(counts)) == pytest.approx(expected, abs=1e-12)
    total = sum(counts)
    effective = effective_number([count / total for count in counts])
    assert effective == pytest.approx(2**expected, rel=1e-12)


def test_nothing_has_no_entropy():
    assert entropy(np.zeros(4, np.int64)) is None
    assert effective_number([]) is None


def test_buckets_count_words():
    words = [f"word {int(number)}" for number in np.random.default_rng(0).zipf(1.5, 5000) % 500]
    halves = [Buckets(20), Buckets(20)]
    for number, half in enumerate(halves):
        half.add(np.array([hash_text(word) for word in words[number::2]], np.uint64))
    halves[0].merge(halves[1])
    counts = list(collections.Counter(words).values())
    # Of half a thousand words in a million buckets some two share one by chance.
    assert halves[0].entropy == pytest.approx(scipy.stats.entropy(counts, base=2), rel=1e-3)
