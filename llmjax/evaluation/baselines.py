"""What a language model has to beat to be worth its training: a compressor, and counting.

Both are given the training text and asked for the held-out text, in bits per byte: the unit of
`evaluate`'s bits_per_byte, whatever the tokenizer.
"""

import concurrent.futures
import dataclasses
import lzma
from typing import NamedTuple

import numpy as np

MAX_ORDER = 8  # bytes that fit in a uint64

# Discounts where the counts of counts give none, as in a text of a few lines; KenLM's choice.
_FALLBACK_DISCOUNTS = np.array([0.0, 0.5, 1.0, 1.5])


class XzBits(NamedTuple):
    """What `xz -9` needs for a text, in bits per byte.

    Attributes:
        alone: for the text by itself.
        primed: for the text behind the training text, less what that needs.
    """

    alone: float
    primed: float

    @property
    def best(self) -> float:
        """The fewer of the two."""
        return min(self)


def xz_bits_per_byte(train: bytes, held_out: bytes) -> XzBits:
    """What `xz -9` needs for `held_out`, by itself and when it has seen `train`.

    Its dictionary has 64 MiB: of a longer training text it sees the end.

    Raises:
        ValueError: no held-out text.
    """
    _require_text("held_out", held_out)
    with concurrent.futures.ThreadPoolExecutor() as pool:
        before, both, alone = pool.map(_compressed_size, (train, train + held_out, held_out))
    return XzBits(8 * alone / len(held_out), 8 * (both - before) / len(held_out))


def kneser_ney_bits_per_byte(train: bytes, held_out: bytes, *, order: int = 6) -> float:
    """What a `KneserNey` model of `train` needs for `held_out`, by entropy.

    Raises:
        ValueError: a text is empty, or `order` out of range.
    """
    _require_text("held_out", held_out)
    probabilities = KneserNey.fit(train, order).probabilities(held_out)
    return float(-np.mean(np.log2(probabilities)))


@dataclasses.dataclass(frozen=True)
class _Level:
    """The n-grams of one length n, each n bytes in a uint64, the last byte lowest.

    Attributes:
        grams: [G] sorted, those seen in training.
        shares: [G] the part of the probability after its context that each has for itself.
        contexts: [C] sorted, their first n - 1 bytes.
        backoffs: [C] what is left after each context, for the shorter one to share out.
    """

    grams: np.ndarray
    shares: np.ndarray
    contexts: np.ndarray
    backoffs: np.ndarray

    def interpolate(self, codes: np.ndarray, shorter: np.ndarray) -> np.ndarray:
        """Probabilities of the last bytes of `codes` [N], given them by the next shorter level."""
        shares = _look_up(codes, self.grams, self.shares, default=0.0)
        return shares + _look_up(codes >> 8, self.contexts, self.backoffs, default=1.0) * shorter


@dataclasses.dataclass(frozen=True)
class KneserNey:
    """Interpolated modified Kneser-Ney n-grams of bytes (Chen & Goodman 1999, section 3.5).

    Each level discounts its counts by a constant for counts of one, two, and three or more, and
    gives what that frees to the level below. There, a count is the number of different bytes seen
    before the n-gram. The lowest level gives to the uniform distribution over all 256 bytes, so
    every text has a probability. Texts begin behind zero bytes.

    Attributes:
        levels: from single bytes to the longest n-grams.
    """

    levels: tuple[_Level, ...]

    @classmethod
    def fit(cls, text: bytes, order: int = 6) -> "KneserNey":
        """Counts the n-grams of a text; n is at most `order`.

        Raises:
            ValueError: no text, or `order` not in 1 to 8.
        """
        _require_text("text", text)
        if not 1 <= order <= MAX_ORDER:
            raise ValueError(f"order is {order}: n-grams have 1 to {MAX_ORDER} bytes")
        grams, counts = np.unique(_windows(text, order), return_counts=True)
        levels = [_level(grams, counts)]
        for length in range(order - 1, 0, -1):
            grams, counts = np.unique(_end(grams, length), return_counts=True)
            levels.append(_level(grams, counts))
        return cls(tuple(reversed(levels)))

    def probabilities(self, text: bytes) -> np.ndarray:
        """float64 [N]: the probability of each byte of the text, given those before it."""
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
    """The last `length` bytes of each."""
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
    """What to take off a count of 0, 1, 2, and 3 or more (Chen & Goodman 1999, equation 26)."""
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
    """The value of each code, or the default where it is not known."""
    index = np.minimum(np.searchsorted(known, codes), len(known) - 1)
    return np.where(known[index] == codes, values[index], default)


def _compressed_size(text: bytes) -> int:
    return len(lzma.compress(text, preset=9))


def _require_text(name: str, text: bytes) -> None:
    if not text:
        raise ValueError(f"{name} is empty: give at least one byte of text")
