"""Masks have the stated shares, spare what is special, and are the same on every mesh."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from llmjax import mesh
from llmjax.objectives import masking
from llmjax.objectives.masking import BERT, ELECTRA, MaskingConfig

V, MASK = 256, 4
SPECIAL = (0, 1, 2, 100, 255)  # first, last and in between; the mask token is special of itself
ORDINARY = np.setdiff1d(np.arange(V), [MASK, *SPECIAL])
WHOLE = MaskingConfig(rate=0.3, whole_word=True)


@functools.cache
def compiled(config: MaskingConfig):
    fixed = {"config": config, "mask_id": MASK, "vocab_size": V, "special_ids": SPECIAL}
    return jax.jit(functools.partial(masking.mask_tokens, **fixed))


def mask(seed: int, tokens: np.ndarray, config: MaskingConfig = BERT, **rest) -> masking.Masked:
    return jax.device_get(compiled(config)(jax.random.key(seed), tokens, **rest))


def ordinary(seed: int, rows: int, length: int) -> np.ndarray:
    return np.random.default_rng(seed).choice(ORDINARY, (rows, length)).astype(np.int32)


def packed_rows(seed: int, rows: int, length: int) -> dict[str, np.ndarray]:
    """Two segments and padding of random sizes, a tenth special, words of one to four pieces."""
    random = np.random.default_rng(seed)
    tokens = random.choice(ORDINARY, (rows, length)).astype(np.int32)
    special = random.random((rows, length)) < 0.1
    tokens[special] = random.choice([MASK, *SPECIAL], special.sum())
    cuts = np.sort(random.integers(0, length + 1, (rows, 2, 1)), axis=1)
    place = np.arange(length)
    segments = np.where(place < cuts[:, 0], 1, np.where(place < cuts[:, 1], 2, 0))
    starts = random.random((rows, length)) < 0.5
    return {"tokens": tokens, "segment_ids": segments.astype(np.int32), "word_starts": starts}


@pytest.fixture(scope="module")
def million() -> tuple[np.ndarray, dict[str, np.ndarray]]:
    """2¹¹ rows of 2⁹ tokens: every candidate that they have, and the rows."""
    rows = packed_rows(0, 2048, 512)
    del rows["word_starts"]
    return np.isin(rows["tokens"], ORDINARY) & (rows["segment_ids"] > 0), rows


def standard_errors(count: float, trials: int, share: float) -> float:
    """By how many of them a binomial count misses its mean."""
    return abs(count - trials * share) / math.sqrt(trials * share * (1 - share))


@pytest.mark.parametrize("config", [BERT, ELECTRA], ids=["bert", "electra"])
def test_shares_of_a_million_tokens(config, million):
    candidates, rows = million
    masked = mask(0, config=config, **rows)
    chosen = masked.targets >= 0
    per_row = 0.15 * candidates.sum(1)
    # Above one token a row, the count is rate × candidates, rounded up with the rest's chance.
    clear = per_row >= 1
    assert np.all(np.abs(chosen.sum(1) - per_row)[clear] < 1)
    rest = per_row[clear] % 1
    deviation = math.sqrt(np.sum(rest * (1 - rest)))
    assert abs((chosen.sum(1) - per_row)[clear].sum()) < 3 * deviation

    count = chosen.sum()
    hidden = (masked.tokens == MASK) & chosen
    changed = (masked.tokens != rows["tokens"]) & chosen & ~hidden
    assert standard_errors(hidden.sum(), count, config.mask_share) < 3
    # A random token happens to be the original with a chance of one in all ordinary ones.
    different = config.random_share * (1 - 1 / len(ORDINARY))
    if different:
        assert standard_errors(changed.sum(), count, different) < 3
    else:
        assert not changed.any()


def test_what_is_special_or_padding_is_never_chosen_nor_drawn(million):
    candidates, rows = million
    masked = mask(1, **rows)
    assert not np.any((masked.targets >= 0) & ~candidates)
    np.testing.assert_array_equal(masked.tokens[~candidates], rows["tokens"][~candidates])
    random = masked.tokens[(masked.tokens != rows["tokens"]) & (masked.tokens != MASK)]
    assert not np.isin(random, SPECIAL).any()
    # Every ordinary token is drawn as often as any other: chi-square, near normal here.
    expected = len(random) / len(ORDINARY)
    statistic = np.sum((np.bincount(random, minlength=V)[ORDINARY] - expected) ** 2) / expected
    freedom = len(ORDINARY) - 1
    assert abs(statistic - freedom) < 3 * math.sqrt(2 * freedom)


def test_every_place_is_chosen_as_often_as_any_other():
    rows, length = 4096, 128
    chosen = mask(2, ordinary(0, rows, length)).targets >= 0
    shares = (chosen.sum(0) - 0.15 * rows) ** 2 / (rows * 0.15 * 0.85)
    assert abs(shares.sum() - length) < 3 * math.sqrt(2 * length)


def test_positions_and_their_targets_are_those_of_the_dense_targets(million):
    _, rows = million
    for masked in (mask(3, **rows), mask(3, config=WHOLE, **packed_rows(1, 64, 32))):
        counts = (masked.targets >= 0).sum(1)
        assert counts.max() <= masked.positions.shape[1]
        for row, count in enumerate(counts[:256]):
            places = np.flatnonzero(masked.targets[row] >= 0)
            np.testing.assert_array_equal(masked.positions[row, :count], places)
            np.testing.assert_array_equal(masked.positions[row, count:], 0)
            np.testing.assert_array_equal(
                masked.targets_at[row, :count], masked.targets[row, places]
            )
            np.testing.assert_array_equal(masked.targets_at[row, count:], -1)
    assert mask(3, **rows).positions.shape == (2048, math.ceil(0.15 * 512))


def test_targets_are_the_original_tokens(million):
    _, rows = million
    masked = mask(4, **rows)
    chosen = masked.targets >= 0
    np.testing.assert_array_equal(masked.targets[chosen], rows["tokens"][chosen])
    np.testing.assert_array_equal(masked.tokens[~chosen], rows["tokens"][~chosen])


def test_a_key_is_a_mask_and_another_key_another():
    tokens = ordinary(1, 16, 64)
    first, again, other = mask(5, tokens), mask(5, tokens), mask(6, tokens)
    jax.tree.map(np.testing.assert_array_equal, first, again)
    same = (first.targets >= 0) & (other.targets >= 0)
    # Independent draws share 15 % of what each has chosen: 23 of 154, on average.
    assert standard_errors(same.sum(), (first.targets >= 0).sum(), 0.15) < 4


def test_rows_and_shares_are_drawn_independently():
    """Equal rows get different masks; whether a token is masked says nothing of the next one."""
    tokens = np.repeat(ordinary(2, 1, 64), 512, axis=0)
    masked = mask(7, tokens)
    assert len({row.tobytes() for row in masked.targets}) > 500
    hidden = np.take_along_axis(masked.tokens, masked.positions, axis=1) == MASK
    pairs = masked.targets_at[:, 1:] >= 0
    both = (hidden[:, :-1] & hidden[:, 1:])[pairs]
    assert standard_errors(both.sum(), both.size, 0.8**2) < 4


def test_rows_do_not_depend_on_the_rows_behind_them():
    rows = packed_rows(3, 16, 32)
    some = mask(8, config=WHOLE, **{name: array[:5] for name, array in rows.items()})
    every = mask(8, config=WHOLE, **rows)
    jax.tree.map(lambda a, b: np.testing.assert_array_equal(a, b[:5]), some, every)


@pytest.mark.parametrize("config", [BERT, WHOLE], ids=["tokens", "words"])
@pytest.mark.parametrize("sizes", [(8, 1, 1), (2, 2, 2), (1, 1, 8)])
def test_every_mesh_equals_one_device(config, sizes):
    rows = packed_rows(4, 16, 32)
    alone = mask(9, config=config, **rows)
    with jax.set_mesh(mesh.make_mesh(mesh.MeshConfig(*sizes))):
        spread = compiled(config)(jax.random.key(9), **mesh.shard_batch(rows))
        # Of the type that the batch had, so that the model goes on from there.
        assert spread.tokens.sharding.spec == mesh.named_sharding(("batch", None)).spec
        jax.tree.map(np.testing.assert_array_equal, jax.device_get(spread), alone)


def words_of(rows: dict[str, np.ndarray], row: int) -> list[list[int]]:
    """Places of the candidates of each word, by reading the row from the left."""
    words: list[list[int]] = []
    inside = False
    for place, token in enumerate(rows["tokens"][row]):
        segments = rows["segment_ids"][row]
        if segments[place] == 0 or token not in ORDINARY:
            inside = False
            continue
        fresh = place > 0 and segments[place] != segments[place - 1]
        if not inside or fresh or rows["word_starts"][row, place]:
            words.append([])
        words[-1].append(place)
        inside = True
    return words


def test_whole_words_are_whole():
    rows = packed_rows(5, 256, 48)
    masked = mask(10, config=WHOLE, **rows)
    chosen = masked.targets >= 0
    seen = set()
    for row in range(256):
        words = words_of(rows, row)
        assert not chosen[row].any() or words
        for word in words:
            assert chosen[row, word].all() or not chosen[row, word].any()
            if chosen[row, word].any():
                seen.add(len(word))
        # Nothing outside of words, and one word at least where any can be taken.
        assert chosen[row].sum() == sum(chosen[row, word].sum() for word in words)
        if any(len(word) <= masked.positions.shape[1] for word in words):
            assert chosen[row].any()
    assert {1, 2, 3, 4} <= seen
    # Replacement is by the piece: some chosen words are masked in part.
    partly = [
        word
        for row in range(256)
        for word in words_of(rows, row)
        if chosen[row, word].all() and 0 < (masked.tokens[row, word] == MASK).sum() < len(word)
    ]
    assert partly


def test_whole_words_keep_the_rate():
    """With words of one piece to fill up with, every row gets rate × S, rounded at random."""
    rows, length = 2048, 512
    tokens = ordinary(6, rows, length)
    starts = np.random.default_rng(7).random(tokens.shape) < 0.6
    config = MaskingConfig(whole_word=True)
    counts = (mask(11, tokens, config, word_starts=starts).targets >= 0).sum(1)
    assert set(counts) == {76, 77}  # 0.15 × 512 = 76.8
    assert standard_errors((counts == 77).sum(), rows, 0.8) < 3


def test_words_end_with_their_segment():
    """Two words of two: both do not fit into the budget of two, and one of four never would."""
    tokens = ordinary(8, 64, 4)
    starts = np.tile([True, False, False, False], (64, 1))
    segments = np.tile(np.array([1, 1, 2, 2], np.int32), (64, 1))
    config = MaskingConfig(rate=0.5, whole_word=True)
    chosen = mask(12, tokens, config, word_starts=starts, segment_ids=segments).targets >= 0
    assert {tuple(row) for row in chosen} == {
        (True, True, False, False),
        (False, False, True, True),
    }
    assert not np.any(mask(12, tokens, config, word_starts=starts).targets >= 0)


def test_filling_equals_going_through_the_words():
    random = np.random.default_rng(9)
    pieces = random.integers(0, 6, (200, 24)).astype(np.int32)
    budget = random.integers(0, 40, 200).astype(np.int32)
    expected = np.zeros(pieces.shape, bool)
    for row in range(200):
        left = budget[row]
        for word, size in enumerate(pieces[row]):
            if 0 < size <= left:
                expected[row, word] = True
                left -= size
    np.testing.assert_array_equal(jax.jit(masking._fill)(pieces, budget), expected)


@pytest.mark.parametrize("whole", [False, True])
def test_a_row_with_candidates_has_a_target_and_one_without_has_none(whole):
    tokens = np.full((3, 16), 0, np.int32)
    tokens[1, 5] = 7
    tokens[2, 8:10] = 7
    starts = np.ones(tokens.shape, bool)
    starts[2, 9] = False
    config = MaskingConfig(whole_word=whole)
    chosen = mask(13, tokens, config, word_starts=starts).targets >= 0
    # The word of two exceeds the row's budget of one, and would otherwise never be learned.
    assert chosen.sum(1).tolist() == [0, 1, 2 if whole else 1]


def test_the_bound_on_predictions_is_exact():
    for length in range(1, 300):
        for percent in (1, 7, 15, 25, 29, 57, 100):
            exact = -(-percent * length // 100)
            assert MaskingConfig(rate=percent / 100).max_predictions(length) == exact


def test_masks_can_be_drawn_inside_a_gradient():
    tokens = ordinary(10, 2, 16)

    def loss(weight):
        masked = compiled(BERT)(jax.random.key(0), tokens)
        return jnp.sum(weight * (masked.targets >= 0))

    assert jax.grad(loss)(1.0) == np.sum(mask(0, tokens).targets >= 0)


def test_word_starts_are_looked_up():
    table = np.random.default_rng(11).random(V) < 0.5
    tokens = ordinary(12, 8, 16)
    np.testing.assert_array_equal(masking.word_starts(tokens, table), table[tokens])
    with jax.set_mesh(mesh.make_mesh(mesh.MeshConfig(fsdp=4, tensor=2))):
        batch = mesh.shard_batch({"tokens": tokens})
        found = jax.jit(masking.word_starts)(batch["tokens"], jnp.asarray(table))
        np.testing.assert_array_equal(found, table[tokens])


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("rate", 0.0),
        ("rate", 1.2),
        ("rate", float("nan")),
        ("mask_share", -0.1),
        ("mask_share", float("nan")),
        ("random_share", 1.1),
        ("random_share", 0.3),  # with 0.8 masked
    ],
)
def test_shares_that_mean_nothing_are_refused(name, value):
    with pytest.raises(ValueError, match=rf"masking\.{name}={value}: "):
        MaskingConfig(**{name: value})


def test_shares_may_add_up_to_all():
    for tenths in range(11):
        MaskingConfig(mask_share=tenths / 10, random_share=1 - tenths / 10)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"mask_id": V}, r"\[256\] are not in the vocabulary of 256"),
        ({"special_ids": (0, -1)}, r"\[-1\] are not in the vocabulary"),
        ({"special_ids": tuple(range(V))}, "all 256 tokens of the vocabulary are special"),
        ({"tokens": np.zeros(4, np.int32)}, r"tokens \[B, S\], not \(4,\)"),
        (
            {"segment_ids": np.zeros((2, 3), np.int32)},
            r"segment_ids \(2, 3\) must have .* \(2, 4\)",
        ),
        ({"config": WHOLE}, "needs word_starts"),
    ],
)
def test_what_does_not_fit_is_refused(change, message):
    given = {"tokens": np.zeros((2, 4), np.int32), "config": BERT, "mask_id": MASK}
    given |= {"vocab_size": V, "special_ids": SPECIAL}
    with pytest.raises(ValueError, match=message):
        masking.mask_tokens(jax.random.key(0), **(given | change))
