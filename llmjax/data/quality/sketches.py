"""Sketches of bounded size whose result does not depend on how a corpus is partitioned.

Each keeps the items with the lowest hashes. An item that the whole corpus keeps is also kept by the
part that it is in. So adding in any order and merging any parts give the same sketch, bit for bit.
"""

import heapq
from collections.abc import Callable, Sequence
from typing import Any, Generic, TypeVar

import numpy as np
import xxhash

_RANGE = 2.0**64
Item = TypeVar("Item")


def hash_text(text: str) -> int:
    """64-bit hash (XXH3) of a text's UTF-8; invalid Unicode has a hash too."""
    return xxhash.xxh3_64_intdigest(text.encode("utf-8", "surrogatepass"))


class Distinct:
    """Counts distinct keys, and all occurrences.

    A bottom-k sketch (Bar-Yossef et al. 2002; Beyer et al. 2007): exact up to `size` distinct
    keys, beyond that with a relative standard error of about size^-0.5.

    Args:
        size: number of hashes to keep, 8 bytes each.
    """

    def __init__(self, size: int) -> None:
        self.size = size
        self.total = 0
        self._kept = np.empty(0, np.uint64)
        self._waiting: list[np.ndarray] = []
        self._waits = 0

    def add(self, hashes: np.ndarray) -> None:
        """Adds uniform hashes [N] uint64, one per occurrence."""
        self.total += len(hashes)
        self._take(hashes)

    def merge(self, other: "Distinct") -> None:
        """Merges another sketch of the same size."""
        self.total += other.total
        self._take(other._settled())

    @property
    def count(self) -> float:
        """Distinct keys: exact below `size`, else the estimate (size - 1) / (kth lowest share)."""
        kept = self._settled()
        if len(kept) < self.size:
            return float(len(kept))
        return (self.size - 1) / ((float(kept[-1]) + 1) / _RANGE)

    @property
    def repeated(self) -> float | None:
        """Share of occurrences that repeat an earlier one; None without occurrences."""
        return max(0.0, 1 - self.count / self.total) if self.total else None

    def _take(self, hashes: np.ndarray) -> None:
        if len(self._kept) == self.size:
            hashes = hashes[hashes < self._kept[-1]]
        if len(hashes):
            self._waiting.append(hashes)
            self._waits += len(hashes)
            if self._waits >= max(self.size, 1 << 12):
                self._settled()

    def _settled(self) -> np.ndarray:
        if self._waiting:
            self._kept = np.unique(np.concatenate([self._kept, *self._waiting]))[: self.size].copy()
            self._waiting, self._waits = [], 0
        return self._kept

    def __getstate__(self) -> dict[str, Any]:
        self._settled()
        return self.__dict__


class Sample(Generic[Item]):
    """The items with the lowest keys: if keys are hashes, a uniform sample without replacement.

    Args:
        size: number of items to keep.
    """

    def __init__(self, size: int) -> None:
        self.size = size
        self._items: dict[Any, Item] = {}
        self._bound: Any = None

    def add(self, key: Any, make: Callable[[], Item]) -> None:
        """Offers an item, which is made only if it may be kept. Equal keys mean equal items."""
        if self.size and (self._bound is None or key < self._bound) and key not in self._items:
            self._items[key] = make()
            if len(self._items) >= 2 * self.size:
                self._prune()

    def merge(self, other: "Sample[Item]") -> None:
        """Merges another sample's items."""
        for key, item in other._items.items():
            self.add(key, lambda item=item: item)  # type: ignore[misc]

    def items(self) -> list[tuple[Any, Item]]:
        """(key, item) of the kept items, by key."""
        self._prune()
        return sorted(self._items.items(), key=lambda pair: pair[0])

    def _prune(self) -> None:
        if len(self._items) > self.size:
            keys = heapq.nsmallest(self.size, self._items)
            self._items = {key: self._items[key] for key in keys}
        if len(self._items) == self.size and self._items:
            self._bound = max(self._items)


class Buckets:
    """Word counts in hash buckets; words in the same bucket count as one.

    Args:
        bits: log2 of the number of buckets, 8 bytes each. With more distinct words than buckets
            the rarest words collide, and `entropy` is too low by about their contribution.
    """

    def __init__(self, bits: int) -> None:
        self._mask = np.uint64((1 << bits) - 1)
        self._counts = np.zeros(1 << bits, np.int64)

    def add(self, hashes: np.ndarray) -> None:
        """Counts hashes [N] uint64."""
        np.add.at(self._counts, (hashes & self._mask).astype(np.int64), 1)

    def merge(self, other: "Buckets") -> None:
        """Adds the counts of another instance."""
        self._counts += other._counts

    @property
    def entropy(self) -> float | None:
        """Entropy of the word frequencies in bits; None without words."""
        return entropy(self._counts)


def entropy(counts: np.ndarray) -> float | None:
    """Entropy in bits of counts: log2 N - sum(c log2 c) / N; None without counts."""
    seen = counts[counts > 0].astype(np.float64)
    if not len(seen):
        return None
    total = seen.sum()
    return float(max(0.0, np.log2(total) - (seen * np.log2(seen)).sum() / total))


def effective_number(shares: Sequence[float]) -> float | None:
    """exp of the entropy of shares: the number of equal shares that is as diverse (Hill 1973)."""
    seen = np.array([share for share in shares if share > 0])
    return float(np.exp(-(seen * np.log(seen)).sum())) if len(seen) else None
