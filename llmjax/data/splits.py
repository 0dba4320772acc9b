"""Splits examples: held-out sets and cross-validation folds.

Functions take and return sequences in which element i belongs to example i. Random choices depend
on a hash of the example's key and a seed, never on its position: the order of the examples does not
matter, and added examples move few of the others, or none.
"""

import hashlib
import itertools
import math
from collections.abc import Hashable, Sequence
from typing import Any

import numpy as np

Key = bytes | str


def draw(key: Key, seed: int = 0) -> int:
    """A number in [0, 2^64), uniform over keys, that depends on the key and the seed."""
    data = key.encode() if isinstance(key, str) else key
    salt = seed.to_bytes(8, "little")
    return int.from_bytes(hashlib.blake2b(data, digest_size=8, salt=salt).digest(), "big")


def random(keys: Sequence[Key], share: float, seed: int = 0) -> np.ndarray:
    """Holds out about a share of the examples, each by its key alone.

    Args:
        keys: keys of the examples [N]; equal keys stay together.
        share: share of the examples to hold out, in [0, 1).
        seed: random seed, 0 or more.

    Returns:
        Whether each is held out, bool [N]. Adding examples does not move any of the others.

    Raises:
        ValueError: the share or the seed is out of range.
    """
    _check(share, seed)
    return np.array([draw(key, seed) < share * 2**64 for key in keys], bool)


def stratified(
    keys: Sequence[Key], labels: Sequence[Hashable], share: float, seed: int = 0
) -> np.ndarray:
    """Holds out the same share of every label, but never all examples of one.

    Args:
        keys: keys of the examples [N]; examples with equal keys and labels stay together.
        labels: labels of the examples [N].
        share: share of each label's examples to hold out, in [0, 1).
        seed: random seed, 0 or more.

    Returns:
        Whether each is held out, bool [N]. With distinct keys, the number is within one example of
        the exact share of every label, and of the total unless labels have none to spare.

    Raises:
        ValueError: share or seed is out of range, or the numbers of labels and keys differ.
    """
    _check(share, seed)
    held_out = np.zeros(len(keys), bool)
    strata = _strata(keys, labels, seed)
    quotas = _quotas([len(members) for members in strata], share)
    for members, quota in zip(strata, quotas, strict=True):
        ends = _ends([keys[i] for i in members])[:-1]
        nearest = min(ends, key=lambda end: abs(end - quota))
        held_out[members[:nearest]] = True
    return held_out


def grouped(groups: Sequence[Hashable], share: float, seed: int = 0) -> np.ndarray:
    """Holds out whole groups that together come close to a share of the examples.

    Args:
        groups: groups of the examples [N].
        share: share of the examples to hold out, in [0, 1).
        seed: random seed, 0 or more.

    Returns:
        Whether each is held out, bool [N]; groups are never split. Groups are taken in the order of
        their hashes if they still fit into the share; if none fits, the smallest is taken.

    Raises:
        ValueError: share or seed is out of range, or there is only one group.
    """
    _check(share, seed)
    members = _members(groups)
    if share and len(members) == 1:
        raise ValueError(
            f"all {len(groups)} examples are of the group {next(iter(members))!r}, so none can be "
            "held out without it. Group them by another field, or split by hash."
        )
    order = sorted(members, key=lambda group: draw(repr(group), seed))
    room = share * len(groups)
    chosen = []
    for group in order:
        if len(members[group]) <= room:
            chosen.append(group)
            room -= len(members[group])
    if share and not chosen and groups:
        chosen = [min(order, key=lambda group: len(members[group]))]
    held_out = np.zeros(len(groups), bool)
    for group in chosen:
        held_out[members[group]] = True
    return held_out


def by_time(times: Sequence[Any], share: float) -> np.ndarray:
    """Holds out the latest share of the examples.

    Args:
        times: times of the examples [N], in any sortable type.
        share: share of the examples to hold out, in [0, 1).

    Returns:
        Whether each is held out, bool [N]: every held-out time is later than all others. Equal
        times stay together, so the share may not be exact.

    Raises:
        ValueError: the share is out of range.
    """
    _check(share, 0)
    order = sorted(range(len(times)), key=lambda i: times[i], reverse=True)
    ends = _ends([times[i] for i in order])[:-1]
    wanted = share * len(times)
    nearest = min(ends, key=lambda end: abs(end - wanted))
    held_out = np.zeros(len(times), bool)
    held_out[order[:nearest]] = True
    return held_out


def folds(keys: Sequence[Key], count: int, seed: int = 0) -> np.ndarray:
    """Assigns the examples to folds of equal size.

    Args:
        keys: keys of the examples [N]; equal keys stay together.
        count: number of folds K, 2 or more.
        seed: random seed, 0 or more.

    Returns:
        The fold of each example, int [N] in [0, K). With distinct keys, sizes differ by at
        most one.

    Raises:
        ValueError: there are fewer examples than folds, or an argument is out of range.
    """
    return stratified_folds(keys, [0] * len(keys), count, seed)


def stratified_folds(
    keys: Sequence[Key], labels: Sequence[Hashable], count: int, seed: int = 0
) -> np.ndarray:
    """Assigns the examples to folds with the same share of every label.

    Args:
        keys: keys of the examples [N]; examples with equal keys and labels stay together.
        labels: labels of the examples [N].
        count: number of folds K, 2 or more.
        seed: random seed, 0 or more.

    Returns:
        The fold of each example, int [N] in [0, K). With distinct keys, the number of examples with
        a label differs by at most one between folds, and so does the size of the folds.

    Raises:
        ValueError: there are fewer examples than folds, or an argument is out of range.
    """
    _check_folds(len(keys), count, seed)
    fold_of = np.zeros(len(keys), int)
    first = 0  # the fold that gets the next surplus example
    for members in _strata(keys, labels, seed):
        each, rest = divmod(len(members), count)
        sizes = [each + ((fold - first) % count < rest) for fold in range(count)]
        first = (first + rest) % count
        by_rank = np.repeat(np.arange(count), sizes)
        start = 0
        for end in _ends([keys[i] for i in members])[1:]:
            fold_of[members[start:end]] = by_rank[start]
            start = end
    return fold_of


def grouped_folds(groups: Sequence[Hashable], count: int, seed: int = 0) -> np.ndarray:
    """Assigns whole groups to folds, largest first, each to the fold with the fewest examples.

    Args:
        groups: groups of the examples [N].
        count: number of folds K, 2 or more.
        seed: random seed for the order of groups of equal size, 0 or more.

    Returns:
        The fold of each example, int [N] in [0, K); groups are never split. Fold sizes differ by at
        most the size of the largest group.

    Raises:
        ValueError: there are fewer groups than folds, or an argument is out of range.
    """
    members = _members(groups)
    _check_folds(len(members), count, seed, "groups")
    order = sorted(members, key=lambda group: (-len(members[group]), draw(repr(group), seed)))
    sizes = [0] * count
    fold_of = np.zeros(len(groups), int)
    for group in order:
        fold = sizes.index(min(sizes))
        fold_of[members[group]] = fold
        sizes[fold] += len(members[group])
    return fold_of


def _members(groups: Sequence[Hashable]) -> dict[Hashable, list[int]]:
    members: dict[Hashable, list[int]] = {}
    for i, group in enumerate(groups):
        members.setdefault(group, []).append(i)
    return members


def _strata(keys: Sequence[Key], labels: Sequence[Hashable], seed: int) -> list[list[int]]:
    """The examples of every label in the order of their hashes; labels are in hash order too."""
    if len(keys) != len(labels):
        raise ValueError(f"{len(keys)} keys with {len(labels)} labels: give one of each.")
    places = [draw(key, seed) for key in keys]
    members = _members(labels)
    return [
        sorted(members[label], key=lambda i: places[i])
        for label in sorted(members, key=lambda label: draw(repr(label), seed))
    ]


def _ends(values: Sequence[Any]) -> list[int]:
    """Positions where a sorted sequence can be cut between unequal values, including both ends."""
    ends = [i + 1 for i, (one, next_) in enumerate(itertools.pairwise(values)) if one != next_]
    return [0, *ends, len(values)]


def _quotas(sizes: Sequence[int], share: float) -> list[int]:
    """Integers close to share × size that sum to about share × Σ size (largest remainders)."""
    exact = [share * size for size in sizes]
    quotas = [min(math.floor(v), n - 1) for v, n in zip(exact, sizes, strict=True)]
    missing = round(sum(exact)) - sum(quotas)
    # Keeps one example for training: an unseen label cannot be learned.
    able = [i for i, size in enumerate(sizes) if quotas[i] + 1 < size]
    for i in sorted(able, key=lambda i: quotas[i] - exact[i])[:missing]:
        quotas[i] += 1
    return quotas


def _check(share: float, seed: int) -> None:
    if not 0 <= share < 1:
        raise ValueError(f"share is {share}: use at least 0 and below 1.")
    if seed < 0:
        raise ValueError(f"seed is {seed}: use 0 or more.")


def _check_folds(size: int, count: int, seed: int, what: str = "examples") -> None:
    _check(0, seed)
    if not 2 <= count <= size:
        raise ValueError(
            f"{size} {what} cannot be dealt into {count} folds: use 2 folds or more, and at least "
            "as many " + what + "."
        )
