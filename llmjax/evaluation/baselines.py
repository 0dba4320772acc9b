"""Baselines that a language model must beat: a compressor and an n-gram model.

Both see the training text and are scored on the held-out text in bits per byte, like `evaluate`'s
bits_per_byte, independent of any tokenizer.
"""

import concurrent.futures
import dataclasses
import lzma
from typing import NamedTuple

import numpy as np

MAX_ORDER = 8  # bytes that fit in a uint64

# Used where the counts of counts determine no discounts, as in a text of a few lines; KenLM's.
_FALLBACK_DISCOUNTS = np.array([0.0, 0.5, 1.0, 1.5])


class XzBits(NamedTuple):
    """Bits per byte that `xz -9` needs for a text.

    Attributes:
        alone: bits for the text by itself.
        primed: additional bits when the text follows the training text.
    """

    alone: float
    primed: float

    @property
    def best(self) -> float:
        """The smaller of the two."""
        return min(self)


def xz_bits_per_byte(train: bytes, held_out: bytes) -> XzBits:
    """Compresses `held_out` with `xz -9`, by itself and after `train`.

    The dictionary holds 64 MiB, so of a longer training text only the end counts.

    Raises:
        ValueError: a text is empty.
    """
    _require_text("held_out", held_out)
    with concurrent.futures.ThreadPoolExecutor() as pool:
        before, both, alone = pool.map(_compressed_size, (train, train + held_out, held_out))
    return XzBits(8 * alone / len(held_out), 8 * (both - before) / len(held_out))


def kneser_ney_bits_per_byte(train: bytes, held_out: bytes, *, order: int = 6) -> float:
    """Cross-entropy of `held_out` under a `KneserNey` model of `train`.

    Raises:
        ValueError: a text is empty or `order` is out of range.
    """
    _require_text("held_out", held_out)
    probabilities = KneserNey.fit(train, order).probabilities(held_out)
    return float(-np.mean(np.log2(probabilities)))


@dataclasses.dataclass(frozen=True)
class _Level:
    """The n-grams of one length n, each packed into a uint64 with the last byte lowest.

    Attributes:
        grams: [G], sorted; the n-grams of the training text.
        shares: [G], the discounted probability of each after its context.
        contexts: [C], sorted; their first n - 1 bytes.
        backoffs: [C], the probability left to the shorter context.
    """

    grams: np.ndarray
    shares: np.ndarray
    contexts: np.ndarray
    backoffs: np.ndarray

    def interpolate(self, codes: np.ndarray, shorter: np.ndarray) -> np.ndarray:
        """Probabilities of the last bytes of `codes` [N], given those of the shorter context."""
        shares = _look_up(codes, self.grams, self.shares, default=0.0)
        return shares + _look_up(codes >> 8, self.contexts, self.backoffs, default=1.0) * shorter


@dataclasses.dataclass(frozen=True)
class KneserNey:
    """Interpolated modified Kneser-Ney n-grams of bytes (Chen & Goodman 1999, section 3.5).

    Each level discounts its counts by constants for counts of one, two, and three or more, and
    gives the freed mass to the level below. At lower levels the count of an n-gram is the number of
    distinct bytes that precede it. The lowest level backs off to the uniform distribution over all
    256 bytes, so every text has a nonzero probability. Texts are padded with leading zero bytes.

    Attributes:
        levels: levels from single bytes to the longest n-grams.
    """

    levels: tuple[_Level, ...]

    @classmethod
    def fit(cls, text: bytes, order: int = 6) -> "KneserNey":
        """Counts the n-grams of a text, up to n = `order`.

        Raises:
            ValueError: the text is empty or `order` is not in 1 to 8.
        """
        _require_text("text", text)
        if not 1 <= order <= MAX_ORDER:
            raise ValueError(f"order={order}: must be in 1 to {MAX_ORDER} (bytes of an n-gram)")
        grams, counts = np.unique(_windows(text, order), return_counts=True)
        levels = [_level(grams, counts)]
        for length in range(order - 1, 0, -1):
            grams, counts = np.unique(_end(grams, length), return_counts=True)
            levels.append(_level(grams, counts))
        return cls(tuple(reversed(levels)))

    def probabilities(self, text: bytes) -> np.ndarray:
        """float64 [N]: the probability of each byte of the text, given the bytes before it."""
        codes = _windows(text, len(self.levels))
        result = np.full(len(text), 1 / 256)
        for length, level in enumerate(self.levels, start=1):
            result = level.interpolate(_end(codes, length), result)
        return result


def _windows(text: bytes, length: int) -> np.ndarray:
    """uint64 [N]: for each byte, the `length` bytes that end with it."""
    padded = np.frombuffer(bytes(length - 1) + text, np.uint8)
    codes: np.ndarray = np.zeros(len(text), np.uint64)
    for start in range(length):
        codes = (codes << 8) | padded[start : start + len(text)]
    return codes


def _end(codes: np.ndarray, length: int) -> np.ndarray:
    """The last `length` bytes of each code."""
    return codes & np.uint64((1 << 8 * length) - 1)


def _level(grams: np.ndarray, counts: np.ndarray) -> _Level:
    contexts, first = np.unique(grams >> 8, return_index=True)
    totals = np.add.reduceat(counts, first)
    discounts = _discounts(counts)[np.minimum(counts, 3)]
    widths = np.diff(first, append=len(grams))
    return _Level(
        grams=grams,
        shares=(counts - discounts) / np.repeat(totals, widths),
        contexts=contexts,
        backoffs=np.add.reduceat(discounts, first) / totals,
    )


def _discounts(counts: np.ndarray) -> np.ndarray:
    """Discounts of counts 0, 1, 2, and 3 or more (Chen & Goodman 1999, equation 26)."""
    number = np.bincount(np.minimum(counts, 5), minlength=6).astype(float)
    if not number[1:5].all():
        return _FALLBACK_DISCOUNTS
    of = np.arange(1, 4)
    ratio = number[1] / (number[1] + 2 * number[2])
    discounts = of - (of + 1) * ratio * number[2:5] / number[1:4]
    return np.array([0.0, *discounts]) if (discounts > 0).all() else _FALLBACK_DISCOUNTS


def _look_up(
    codes: np.ndarray, known: np.ndarray, values: np.ndarray, *, default: float
) -> np.ndarray:
    """The value of each code, or the default for unknown codes."""
    index = np.minimum(np.searchsorted(known, codes), len(known) - 1)
    return np.where(known[index] == codes, values[index], default)


def _compressed_size(text: bytes) -> int:
    return len(lzma.compress(text, preset=9))


def _require_text(name: str, text: bytes) -> None:
    if not text:
        raise ValueError(f"{name} is empty: give at least one byte of text")
