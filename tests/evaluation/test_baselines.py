"""The baselines are what they are called: sums to one, and equal to a textbook's n-grams."""

import collections
import lzma

import numpy as np
import pytest

from llmjax.evaluation import baselines

POEM = b"""the cat sat on the mat and the dog sat on the log and the hog sat in the bog
so the cat on the mat saw the hog in the fog and the dog on the log saw the cat in the hat
a rat that sat at the gate ate a date at eight and that late rate was the fate of the rat
"""


class Textbook:
    """Interpolated modified Kneser-Ney with dictionaries, one n-gram at a time."""

    def __init__(self, text: bytes, order: int) -> None:
        self.order = order
        padded = bytes(order - 1) + text
        self.counts: list[collections.Counter[bytes]] = [collections.Counter()] * (order + 1)
        ends = range(order, len(padded) + 1)
        self.counts[order] = collections.Counter(padded[end - order : end] for end in ends)
        for length in range(order - 1, 0, -1):
            # A lower count is N1+(• gram): in how many different bytes' company the gram was seen.
            self.counts[length] = collections.Counter(gram[1:] for gram in self.counts[length + 1])

    def discount(self, length: int, count: int) -> float:
        n = collections.Counter(self.counts[length].values())
        if not all(n[k] for k in (1, 2, 3, 4)):
            return [0.0, 0.5, 1.0, 1.5][min(count, 3)]
        y = n[1] / (n[1] + 2 * n[2])
        d = [1 - 2 * y * n[2] / n[1], 2 - 3 * y * n[3] / n[2], 3 - 4 * y * n[4] / n[3]]
        if min(d) <= 0:
            return [0.0, 0.5, 1.0, 1.5][min(count, 3)]
        return [0.0, *d][min(count, 3)]

    def probability(self, context: bytes, byte: int, length: int | None = None) -> float:
        length = self.order if length is None else length
        if length == 0:
            return 1 / 256
        context = context[len(context) - (length - 1) :]
        lower = self.probability(context, byte, length - 1)
        seen = {gram: c for gram, c in self.counts[length].items() if gram[:-1] == context}
        total = sum(seen.values())
        if not total:
            return lower
        count = seen.get(context + bytes([byte]), 0)
        freed = sum(self.discount(length, c) for c in seen.values())
        return (count - self.discount(length, count) + freed * lower) / total


@pytest.mark.parametrize("order", [1, 2, 3, 6])
def test_equals_the_textbook(order: int) -> None:
    model, textbook = baselines.KneserNey.fit(POEM, order), Textbook(POEM, order)
    text = b"the dog ate the fog\nquietly \xc3\xa9"
    padded = bytes(order - 1) + text
    expected = [
        textbook.probability(padded[at : at + order - 1], byte) for at, byte in enumerate(text)
    ]
    np.testing.assert_allclose(model.probabilities(text), expected, rtol=1e-12)


def test_the_poem_has_estimated_discounts() -> None:
    """Or the comparison above would be one of fallbacks."""
    n = collections.Counter(Textbook(POEM, 3).counts[3].values())
    assert all(n[k] for k in (1, 2, 3, 4))


@pytest.mark.parametrize(
    "context", [b"", b"t", b"the c", b"og sat ", b"zzzzzz", b"ate a\xff", b"\0"]
)
@pytest.mark.parametrize("train", [POEM, b"a", bytes(range(256)) * 3], ids=["poem", "one", "all"])
def test_probabilities_sum_to_one(context: bytes, train: bytes) -> None:
    model = baselines.KneserNey.fit(train)
    every = [model.probabilities(context + bytes([byte]))[-1] for byte in range(256)]
    assert min(every) > 0
    np.testing.assert_allclose(sum(every), 1, rtol=1e-12)


def test_longest_order_sums_to_one() -> None:
    model = baselines.KneserNey.fit(POEM, baselines.MAX_ORDER)
    every = [model.probabilities(b"\xff\xfe sat on" + bytes([byte]))[-1] for byte in range(256)]
    np.testing.assert_allclose(sum(every), 1, rtol=1e-12)


def test_finds_the_entropy_of_a_known_source() -> None:
    """A Markov chain over 4 letters: bits per byte come down to its entropy rate, not below."""
    rng = np.random.default_rng(0)
    matrix = rng.dirichlet(np.full(4, 0.5), size=4)
    stationary = np.linalg.matrix_power(matrix, 200)[0]
    rate = -float(stationary @ (matrix * np.log2(matrix)).sum(axis=1))
    draws, state, letters = rng.random(60_000), 0, bytearray()
    for draw in draws:
        state = min(int(np.searchsorted(np.cumsum(matrix[state]), draw)), 3)
        letters.append(ord("a") + state)
    train, held_out = bytes(letters[:50_000]), bytes(letters[50_000:])
    bits = baselines.kneser_ney_bits_per_byte(train, held_out, order=3)
    assert rate - 0.03 < bits < rate + 0.03


def test_xz_counts_what_it_writes() -> None:
    train, held_out = POEM * 3, POEM[:100]
    bits = baselines.xz_bits_per_byte(train, held_out)
    assert bits.alone == 8 * len(lzma.compress(held_out, preset=9)) / 100
    assert bits.primed < bits.alone / 4  # it has seen those lines
    assert bits.best == bits.primed


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: baselines.KneserNey.fit(b""), "text is empty"),
        (lambda: baselines.KneserNey.fit(b"abc", 9), "order=9"),
        (lambda: baselines.KneserNey.fit(b"abc", 0), "order=0"),
        (lambda: baselines.kneser_ney_bits_per_byte(b"abc", b""), "held_out is empty"),
        (lambda: baselines.xz_bits_per_byte(b"abc", b""), "held_out is empty"),
    ],
)
def test_bad_input_is_named(call, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call()
