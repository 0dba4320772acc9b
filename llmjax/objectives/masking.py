"""Dynamic masking on the device: which tokens a model has to predict, drawn anew at every step.

These are pure functions of a key: they run inside the compiled step, and the same key gives the
same masks on every mesh. The number of chosen tokens per row is bounded by P = ceil(rate · S), so
heads are computed at [B, P] positions instead of all [B, S].
"""

import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct

from llmjax import mesh
from llmjax.kernels.linear_cross_entropy import IGNORE

ROWS = ("batch", None)  # logical axes of tokens [B, S]: draws depend on the whole row


@dataclasses.dataclass(frozen=True)
class MaskingConfig:
    """Which tokens are predicted, and what the model sees in their place.

    Attributes:
        rate: share of a row's candidates (tokens that are neither special nor padding) that is
            chosen.
        mask_share: share of the chosen tokens that the mask token replaces.
        random_share: share of the chosen tokens that a random token replaces; the rest is kept.
        whole_word: whether the pieces of a word are chosen together or not at all.
    """

    rate: float = 0.15
    mask_share: float = 0.8
    random_share: float = 0.1
    whole_word: bool = False

    def __post_init__(self) -> None:
        if not 0 < self.rate <= 1:
            raise ValueError(f"masking.rate={self.rate}: must be in (0, 1] (0.15 is usual)")
        for name in ("mask_share", "random_share"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(
                    f"masking.{name}={getattr(self, name)}: must be in [0, 1], a share of the "
                    "chosen tokens"
                )
        if self.mask_share + self.random_share > 1 + 1e-9:
            raise ValueError(
                f"masking.random_share={self.random_share}: with masking.mask_share="
                f"{self.mask_share} the shares exceed 1; lower one of them"
            )

    def max_predictions(self, length: int) -> int:
        """P = ceil(rate · S), the maximum number of tokens chosen in a row of `length` S."""
        # In floating point 0.07 · 100 is just above 7, and must not round up to 8.
        return max(1, math.ceil(round(self.rate * length, 6)))


# 15 % chosen, of which 80 % masked, 10 % random, 10 % kept (Devlin et al. 2019, section 3.1).
BERT = MaskingConfig()

# 85 % masked, 15 % kept: ELECTRA's generator (Clark et al. 2020) in the authors' released code
# (`mask` in pretrain_helpers.py). The large model uses a rate of 25 % (appendix A).
ELECTRA = MaskingConfig(mask_share=0.85, random_share=0.0)


@struct.dataclass
class Masked:
    """Rows with masked tokens, and the original tokens.

    Attributes:
        tokens: [B, S], with masks and random tokens in place of some.
        targets: int32 [B, S], the original token where one was chosen, else -1.
        positions: int32 [B, P], positions of the chosen tokens, ascending; 0 after the last. On a
            mesh that splits sequences, P is rounded up to a multiple of their devices.
        targets_at: int32 [B, P], the targets at those positions; -1 after the last.
    """

    tokens: jax.Array
    targets: jax.Array
    positions: jax.Array
    targets_at: jax.Array


def mask_tokens(
    key: jax.Array,
    tokens: jax.Array,
    config: MaskingConfig,
    *,
    mask_id: int,
    vocab_size: int,
    special_ids: tuple[int, ...],
    segment_ids: jax.Array | None = None,
    word_starts: jax.Array | None = None,
) -> Masked:
    """Masks random tokens of each row (Devlin et al. 2019, section 3.1).

    In a row with n candidates, rate · n are chosen, rounded up or down at random so that the
    expected share is the rate, but at least one. With whole-word masking, words are chosen in
    random order, and a word with more pieces than remain to be chosen is skipped. The first word
    may exceed the row's number, or short rows would only ever mask short words, but never P. So the
    share is slightly below the rate if no short word is left to reach it.

    Args:
        key: key of all draws; a row's draws only depend on it and on the row's place in the batch.
        tokens: int32 [B, S].
        config: masking options.
        mask_id: the mask token; it is itself special.
        vocab_size: random tokens are drawn from [0, vocab_size) without the special ones.
        special_ids: tokens that are never chosen and never drawn.
        segment_ids: int32 [B, S] of packed rows; 0 is padding, and a word ends with its segment.
        word_starts: bool [B, S], the tokens that begin a word; see `word_starts`.

    Raises:
        ValueError: shapes do not match, ids are outside the vocabulary, or whole-word masking lacks
            `word_starts`.
    """
    special = _special(mask_id, vocab_size, special_ids)
    _check_shapes(tokens, segment_ids=segment_ids, word_starts=word_starts)
    if config.whole_word and word_starts is None:
        raise ValueError("masking.whole_word needs word_starts, the tokens that begin a word")
    tokens, segment_ids = jax.tree.map(_place, (tokens, segment_ids))
    order_key, count_key, replace_key = jax.random.split(key, 3)

    candidates = ~_any_equal(tokens, special)
    if segment_ids is not None:
        candidates &= segment_ids != 0
    boundaries = jnp.ones_like(candidates)
    if config.whole_word:
        boundaries = _boundaries(jnp.asarray(word_starts), candidates, segment_ids)
    capacity = config.max_predictions(tokens.shape[1])
    budget = _budget(count_key, candidates, config.rate, capacity)
    chosen = _choose(order_key, candidates, boundaries, budget, capacity)

    replaced = jnp.where(
        chosen, _replacements(replace_key, tokens, config, mask_id, special, vocab_size), tokens
    )
    targets = jnp.where(chosen, tokens, IGNORE).astype(jnp.int32)
    positions, there = _first(chosen, capacity)
    targets_at = jnp.where(there, jnp.take_along_axis(targets, positions, axis=1), IGNORE)
    return Masked(replaced, targets, positions, targets_at)


def word_starts(tokens: jax.Array, starts_word: jax.Array) -> jax.Array:
    """Which tokens begin a word, bool [B, S].

    Args:
        tokens: int32 [B, S].
        starts_word: bool [V], whether a token of the vocabulary begins a word (in SentencePiece
            those with the prefix "▁", in WordPiece those without "##").
    """
    tokens = mesh.place(jnp.asarray(tokens), ROWS)
    return mesh.sharded(jnp.asarray(starts_word).at[tokens].get, ROWS)()


def _special(mask_id: int, vocab_size: int, special_ids: tuple[int, ...]) -> np.ndarray:
    """The special tokens, including the mask, in ascending order."""
    special = np.unique(np.array([mask_id, *special_ids], np.int32))
    outside = [int(token) for token in special if not 0 <= token < vocab_size]
    if outside:
        raise ValueError(
            f"mask_tokens: mask_id and special_ids {outside} are not in the vocabulary of "
            f"{vocab_size}"
        )
    if len(special) == vocab_size:
        raise ValueError(
            f"mask_tokens: all {vocab_size} tokens of the vocabulary are special; none can be "
            "chosen or drawn"
        )
    return special


def _check_shapes(tokens: jax.Array, **others: jax.Array | None) -> None:
    if tokens.ndim != 2:
        raise ValueError(f"mask_tokens needs tokens [B, S], not {tokens.shape}")
    for name, other in others.items():
        if other is not None and other.shape != tokens.shape:
            raise ValueError(
                f"mask_tokens: {name} {other.shape} must have the shape of tokens, {tokens.shape}"
            )


def _any_equal(tokens: jax.Array, ids: np.ndarray) -> jax.Array:
    return jnp.any(tokens[..., None] == ids, axis=-1)


def _place(x):
    return mesh.place(jnp.asarray(x), ROWS)


def _places(like: jax.Array) -> jax.Array:
    """0, 1, … in every row of an array [B, S], with its sharding."""
    place = mesh.sharded(jax.lax.broadcasted_iota, ROWS)
    return place(jnp.int32, like.shape, 1)


def _boundaries(
    starts: jax.Array, candidates: jax.Array, segment_ids: jax.Array | None
) -> jax.Array:
    """Where a word, or anything after a word, begins: bool [B, S]."""
    changed = starts | _differs_from_previous(candidates)
    if segment_ids is not None:
        changed |= _differs_from_previous(segment_ids)
    return changed | (_places(starts) == 0)


def _differs_from_previous(x: jax.Array) -> jax.Array:
    return x != jnp.concatenate([x[:, :1], x[:, :-1]], axis=1)


def _budget(key: jax.Array, candidates: jax.Array, rate: float, capacity: int) -> jax.Array:
    """The number of tokens to choose, int32 [B]: rate · candidates, rounded randomly, up to P."""
    wanted = rate * jnp.sum(candidates, axis=1, dtype=jnp.float32)
    whole = jnp.floor(wanted)
    up = mesh.sharded(jax.random.uniform, ROWS[:1])(key, wanted.shape) < wanted - whole
    return jnp.minimum(whole.astype(jnp.int32) + up, capacity)


def _choose(
    key: jax.Array,
    candidates: jax.Array,
    boundaries: jax.Array,
    budget: jax.Array,
    capacity: int,
) -> jax.Array:
    """Chooses whole words of candidates in random order within the budget: bool [B, S].

    A word is represented by its first position and its number of pieces, 0 at other positions.
    """
    length = candidates.shape[1]
    places = _places(candidates)
    following = jnp.concatenate([boundaries[:, 1:], jnp.ones_like(boundaries[:, :1])], axis=1)
    ends = jax.lax.cummin(jnp.where(following, places + 1, length), axis=1, reverse=True)
    pieces = jnp.where(candidates & boundaries, ends - places, 0)
    pieces = jnp.where(pieces <= capacity, pieces, 0)

    noise = mesh.sharded(jax.random.uniform, ROWS)(key, candidates.shape)
    noise = jnp.where(pieces > 0, noise, 2.0)  # after all words
    _, pieces, order = jax.lax.sort((noise, pieces, places), dimension=1, num_keys=1)
    # At least the first word, even if the budget is 0 or the word is longer.
    taken = _fill(pieces, jnp.maximum(budget, pieces[:, 0]))
    # Undo the random order, and extend from the first piece of a word to all its pieces.
    _, taken = jax.lax.sort((order, taken), dimension=1, num_keys=1)
    first = jax.lax.cummax(jnp.where(boundaries, places, 0), axis=1)
    return jnp.take_along_axis(taken, first, axis=1)


def _fill(pieces: jax.Array, budget: jax.Array) -> jax.Array:
    """Takes words in order, skipping those that exceed the remaining budget: bool [B, S].

    Each round takes all words up to the first that does not fit. As the budget only shrinks, that
    word never will. So a few rounds (one if all words have length 1) equal a sequential loop.
    """

    def fitting(taken):
        left = budget - jnp.sum(jnp.where(taken, pieces, 0), axis=1)
        return (pieces > 0) & ~taken & (pieces <= left[:, None]), left

    def take(taken):
        fits, left = fitting(taken)
        running = jnp.cumsum(jnp.where(fits, pieces, 0), axis=1)
        return taken | (fits & (running <= left[:, None]))

    return jax.lax.while_loop(
        lambda taken: jnp.any(fitting(taken)[0]), take, jnp.zeros_like(pieces, dtype=bool)
    )


def _replacements(
    key: jax.Array,
    tokens: jax.Array,
    config: MaskingConfig,
    mask_id: int,
    special: np.ndarray,
    vocab_size: int,
) -> jax.Array:
    """What replaces each token if it is chosen, [B, S]: the mask, a random token or itself."""
    share_key, random_key = jax.random.split(key)
    share = mesh.sharded(jax.random.uniform, ROWS)(share_key, tokens.shape)
    rest = tokens
    if config.random_share:
        drawn = _random_tokens(random_key, tokens.shape, special, vocab_size)
        random = share < config.mask_share + config.random_share
        rest = jnp.where(random, drawn.astype(tokens.dtype), tokens)
    return jnp.where(share < config.mask_share, jnp.asarray(mask_id, tokens.dtype), rest)


def _first(chosen: jax.Array, capacity: int) -> tuple[jax.Array, jax.Array]:
    """The first positions in each row where `chosen` holds, [B, P], and whether they exist."""
    length, parts = chosen.shape[1], mesh.size("sequence")
    width = -(-capacity // parts) * parts  # devices that split sequences split these, too
    places = jnp.sort(jnp.where(chosen, _places(chosen), length), axis=1)[:, :width]
    there = places < length
    return jnp.where(there, places, 0), there


def _random_tokens(
    key: jax.Array, shape: tuple[int, ...], special: np.ndarray, vocab_size: int
) -> jax.Array:
    """Random tokens, uniform over the vocabulary without the special tokens, int32 `shape`."""
    ordinary = vocab_size - len(special)
    rank = mesh.sharded(jax.random.randint, ROWS)(key, shape, 0, ordinary)
    # The number of special tokens before the ordinary token of rank r is the number of those that
    # have at most r ordinary tokens before them.
    before = special - np.arange(len(special), dtype=np.int32)
    return rank + jnp.sum(rank[..., None] >= before, axis=-1, dtype=jnp.int32)
