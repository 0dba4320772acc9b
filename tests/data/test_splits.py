"""Splits keep what they promise: shares, groups and order; and nothing but keys decides them."""

import collections
import itertools

import hypothesis
import numpy as np
import pytest
from hypothesis import strategies

from llmjax.data import splits
from llmjax.data.prepare import split_of

KEYS = strategies.sets(strategies.text(max_size=6), min_size=1, max_size=60).map(sorted)
LABELS = strategies.sampled_from(["a", "b", "c", 0, 1])
SHARES = strategies.floats(0, 0.99)
SEEDS = strategies.integers(0, 5)


def labels_of(keys: list[str], data: strategies.DataObject) -> list:
    return data.draw(strategies.lists(LABELS, min_size=len(keys), max_size=len(keys)))


def test_the_draw_is_that_of_documents() -> None:
    """Of seed 0: so a text falls on the same side whether it is a document or a key."""
    texts = [f"text {i}" for i in range(300)]
    held_out = splits.random(texts, 0.2)
    assert held_out.tolist() == [split_of(text.encode(), 0.2) == "validation" for text in texts]
    # Of n draws of chance p, within four standard deviations.
    assert abs(held_out.sum() - 60) < 4 * (300 * 0.2 * 0.8) ** 0.5
    assert (splits.random(texts, 0.2, seed=1) != held_out).any()


@hypothesis.given(keys=KEYS, share=SHARES, seed=SEEDS, data=strategies.data())
def test_random_holds_out_by_the_key_alone(keys, share, seed, data) -> None:
    held_out = dict(zip(keys, splits.random(keys, share, seed), strict=True))
    subset = data.draw(strategies.lists(strategies.sampled_from(keys)))
    assert splits.random(subset, share, seed).tolist() == [held_out[key] for key in subset]


def test_a_share_of_all_is_exact_where_labels_can_spare_it() -> None:
    labels = [i % 7 for i in range(100)]  # seven labels of 14 or 15, a tenth of each is 1.4 or 1.5
    held_out = splits.stratified([f"key {i}" for i in range(100)], labels, 0.1)
    assert held_out.sum() == 10
    assert set(np.bincount(labels, held_out)) == {1, 2}


@hypothesis.given(keys=KEYS, share=SHARES, seed=SEEDS, data=strategies.data())
def test_stratified_is_within_one_of_every_share(keys, share, seed, data) -> None:
    labels = labels_of(keys, data)
    held_out = splits.stratified(keys, labels, share, seed)
    counts = collections.Counter(labels)
    taken = collections.Counter(itertools.compress(labels, held_out))
    for label, count in counts.items():
        assert abs(taken[label] - share * count) <= 1 + 1e-9
        assert taken[label] < count
    spent = sum(taken[label] == count - 1 for label, count in counts.items())
    assert abs(held_out.sum() - share * len(keys)) <= 1 + spent + 1e-9


@hypothesis.given(keys=KEYS, count=strategies.integers(2, 6), seed=SEEDS, data=strategies.data())
def test_folds_are_equal_in_size_and_in_labels(keys, count, seed, data) -> None:
    hypothesis.assume(len(keys) >= count)
    labels = labels_of(keys, data)
    for fold_of, strata in (
        (splits.folds(keys, count, seed), [0] * len(keys)),
        (splits.stratified_folds(keys, labels, count, seed), labels),
    ):
        sizes = np.bincount(fold_of, minlength=count)
        assert len(sizes) == count
        assert sizes.max() - sizes.min() <= 1
        for label in set(strata):
            inside = np.array([other == label for other in strata])
            of_label = np.bincount(fold_of[inside], minlength=count)
            assert of_label.max() - of_label.min() <= 1


@hypothesis.given(keys=KEYS, seed=SEEDS, data=strategies.data())
def test_order_does_not_matter(keys, seed, data) -> None:
    hypothesis.assume(len(keys) >= 3)
    labels = labels_of(keys, data)
    order = data.draw(strategies.permutations(range(len(keys))))
    shuffled, their_labels = [keys[i] for i in order], [labels[i] for i in order]
    hypothesis.assume(len(set(map(repr, labels))) == len(set(labels)))
    for split in (
        lambda keys, _: splits.random(keys, 0.3, seed),
        lambda keys, labels: splits.stratified(keys, labels, 0.3, seed),
        lambda keys, labels: splits.stratified_folds(keys, labels, 3, seed),
    ):
        assert split(shuffled, their_labels).tolist() == split(keys, labels)[order].tolist()


def test_examples_that_are_added_move_few_others() -> None:
    keys = [f"key {i}" for i in range(1000)]
    labels = [i % 3 for i in range(1000)]
    for split, most in (
        (lambda n: splits.stratified(keys[:n], labels[:n], 0.2), 10),
        # Every boundary between folds moves by a few places, of every label.
        (lambda n: splits.folds(keys[:n], 5), 4 * 10),
        (lambda n: splits.stratified_folds(keys[:n], labels[:n], 5), 3 * 4 * 10),
    ):
        assert 0 < (split(990) != split(1000)[:990]).sum() <= most


@hypothesis.given(
    groups=strategies.lists(strategies.integers(0, 9), min_size=2, max_size=60),
    share=SHARES,
    seed=SEEDS,
)
def test_groups_stay_whole(groups, share, seed) -> None:
    sizes = collections.Counter(groups)
    hypothesis.assume(len(sizes) > 1)
    held_out = splits.grouped(groups, share, seed)
    outside = set(itertools.compress(groups, ~held_out))
    inside = set(itertools.compress(groups, held_out))
    assert not outside & inside
    assert outside
    if share:
        assert inside
        # No group more than fits, unless there is none that does; and none that would still fit.
        taken, wanted = held_out.sum(), share * len(groups)
        assert taken <= max(wanted, min(sizes.values()))
        assert all(taken + sizes[group] > wanted for group in outside)
    count = min(3, len(sizes))
    fold_of = splits.grouped_folds(groups, count, seed)
    assert len(set(zip(groups, fold_of.tolist(), strict=True))) == len(sizes)
    by_fold = np.bincount(fold_of, minlength=count)
    assert by_fold.min() > 0
    assert by_fold.max() - by_fold.min() <= max(sizes.values())


@hypothesis.given(
    times=strategies.lists(strategies.integers(0, 30), min_size=1, max_size=60), share=SHARES
)
def test_time_goes_one_way(times, share) -> None:
    held_out = splits.by_time(times, share)
    before = [time for time, out in zip(times, held_out, strict=True) if not out]
    after = [time for time, out in zip(times, held_out, strict=True) if out]
    assert before
    if after:
        assert max(before) < min(after)
    ties = max(collections.Counter(times).values())
    assert len(set(times)) == 1 or abs(len(after) - share * len(times)) <= ties


@hypothesis.given(keys=KEYS, copies=strategies.integers(2, 4), data=strategies.data())
def test_copies_stay_together(keys, copies, data) -> None:
    hypothesis.assume(len(keys) >= 3)
    labels = labels_of(keys, data)
    for result in (
        splits.random(keys * copies, 0.3),
        splits.stratified(keys * copies, labels * copies, 0.3),
        splits.folds(keys * copies, 3),
    ):
        assert len(set(zip(keys * copies, result.tolist(), strict=True))) == len(keys)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: splits.random(["a"], 1.0), r"share is 1\.0"),
        (lambda: splits.random(["a"], 0.1, -1), "seed is -1"),
        (lambda: splits.stratified(["a", "b"], [0], 0.1), "2 keys with 1 labels"),
        (lambda: splits.grouped(["g", "g"], 0.1), "all 2 examples are of the group 'g'"),
        (lambda: splits.folds(["a", "b"], 3), "2 examples cannot be dealt into 3 folds"),
        (lambda: splits.grouped_folds(["a", "a"], 2), "1 groups cannot be dealt into 2 folds"),
    ],
)
def test_arguments_are_checked(call, message) -> None:
    with pytest.raises(ValueError, match=message):
        call()
