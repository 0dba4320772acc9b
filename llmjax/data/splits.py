"""Which examples are held out, and which belong to which fold of a cross-validation.

Functions of lists: element i of a result is about element i of the arguments. What is drawn is
drawn by a hash of the example's key and a seed, never by its place: the order of the examples does
not matter, and those that are added later move few of the others, or none.
"""

import hashlib
import itertools
import math
from collections.abc import Hashable, Sequence
from typing import Any

import numpy as np

Key = bytes | str


def draw(key: Key, seed: int = 0) -> int:
    """A number in [0, 2^64) that a key and a seed decide, evenly spread over keys."""
    data = key.encode() if isinstance(key, str) else key
    salt = seed.to_bytes(8, "little")
    return int.from_bytes(hashlib.blake2b(data, digest_size=8, salt=salt).digest(), "big")


def random(keys: Sequence[Key], share: float, seed: int = 0) -> np.ndarray:
    """Holds out about a share of the examples, each by its key alone.

    Args:
        keys: of the examples [N]; those with equal keys stay together.
        share: of the examples to hold out, 0 or more and below 1.
        seed: of the draw, 0 or more.

    Returns:
        Whether each is held out, bool [N]. Examples that are added move none of the others.

    Raises:
        ValueError: the share or the seed is out of range.
    """
    _check(share, seed)
    return np.array([draw(key, seed) < share * 2**64 for key in keys], bool)


def stratified(
    keys: Sequence[Key], labels: Sequence[Hashable], share: float, seed: int = 0
) -> np.ndarray:
    """Holds out the same share of every label, and never all of one.

    Args:
        keys: of the examples [N]; those with equal keys and labels stay together.
        labels: of the examples [N].
        share: of each label's examples to hold out, 0 or more and below 1.
        seed: of the draw, 0 or more.

    Returns:
        Whether each is held out, bool [N]. Where no keys are equal, it is within one example of the
        exact share of every label; and of all together, unless labels have none to spare.

    Raises:
        ValueError: the share or the seed is out of range, or there are not as many labels as keys.
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
    """Holds out whole groups that together come near a share of the examples.

    Args:
        groups: of the examples [N].
        share: of the examples to hold out, 0 or more and below 1.
        seed: of the draw, 0 or more.

    Returns:
        Whether each is held out, bool [N]: never part of a group. Groups are taken in the order of
        their hashes as far as they fit into the share; where not one does, the smallest is taken.

    Raises:
        ValueError: the share or the seed is out of range, or there is one group only to share out.
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
        times: of the examples [N], in any type that can be sorted.
        share: of the examples to hold out, 0 or more and below 1.

    Returns:
        Whether each is held out, bool [N]: every time that is, is later than every time that is
        not. Equal times stay together, so the share is only as near as they allow.

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
    """Deals the examples into folds of equal sizes.

    Args:
        keys: of the examples [N]; those with equal keys stay together.
        count: of folds K, 2 or more.
        seed: of the draw, 0 or more.

    Returns:
        Each one's fold, int [N] in [0, K). Where no keys are equal, sizes differ by one at most.

    Raises:
        ValueError: there are fewer examples than folds, or an argument is out of range.
    """
    return stratified_folds(keys, [0] * len(keys), count, seed)


def stratified_folds(
    keys: Sequence[Key], labels: Sequence[Hashable], count: int, seed: int = 0
) -> np.ndarray:
    """Deals the examples into folds that have the same share of every label.

    Args:
        keys: of the examples [N]; those with equal keys and labels stay together.
        labels: of the examples [N].
        count: of folds K, 2 or more.
        seed: of the draw, 0 or more.

    Returns:
        Each one's fold, int [N] in [0, K). Where no keys are equal, how many of a label are in a
        fold differs by one at most between folds, and so do the sizes of folds.

    Raises:
        ValueError: there are fewer examples than folds, or an argument is out of range.
    """
    _check_folds(len(keys), count, seed)
    fold_of = np.zeros(len(keys), int)
    first = 0  # the fold that gets the next example too many
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
    """Deals whole groups into folds, the largest first, each into the fold with the fewest yet.

    Args:
        groups: of the examples [N].
        count: of folds K, 2 or more.
        seed: of the draw that orders groups of one size, 0 or more.

    Returns:
        Each one's fold, int [N] in [0, K): never two in a group. Sizes differ by no more than the
        largest group has examples.

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
    """The examples of every label, in the order of their hashes; labels in an order of theirs."""
    if len(keys) != len(labels):
        raise ValueError(f"{len(keys)} keys with {len(labels)} labels: give one of each.")
    places = [draw(key, seed) for key in keys]
    members = _members(labels)
    return [
        sorted(members[label], key=lambda i: places[i])
        for label in sorted(members, key=lambda label: draw(repr(label), seed))
    ]


def _ends(values: Sequence[Any]) -> list[int]:
    """Where a sorted sequence may be cut without parting equal values; 0 and its length too."""
    ends = [i + 1 for i, (one, next_) in enumerate(itertools.pairwise(values)) if one != next_]
    return [0, *ends, len(values)]


def _quotas(sizes: Sequence[int], share: float) -> list[int]:
    """Whole numbers near share × size that sum to near share × Σ size (largest remainders)."""
    exact = [share * size for size in sizes]
    quotas = [min(math.floor(v), n - 1) for v, n in zip(exact, sizes, strict=True)]
    missing = round(sum(exact)) - sum(quotas)
    # A label that is never seen in training cannot be learned.
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
