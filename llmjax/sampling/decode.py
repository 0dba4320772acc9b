"""Decoding on the device: one compiled prefill, one compiled loop.

The prefill writes all but the last token of each prompt into the cache; the loop feeds a token,
draws the next and writes it down, until every row has met a stop token or its limit. Prompts are
padded on the right, and their length, the cache and the output have sizes that are powers of two,
so that calls of similar size share their programs.
"""

import dataclasses
import functools
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct
from jax.experimental import multihost_utils

from llmjax import mesh, models
from llmjax.models import ModelConfig
from llmjax.sampling import samplers
from llmjax.sampling.samplers import LOGITS, SamplerConfig

PAD_ID = 0
_SMALLEST_PROMPT, _SMALLEST_OUTPUT = 16, 16  # finer buckets would save little


@dataclasses.dataclass(frozen=True)
class Generated:
    """What was written, on the host.

    Attributes:
        tokens: int32 [B, N]; behind a row's end, 0.
        lengths: int32 [B], tokens of each row, with the stop token if it met one.
        log_probs: float32 [B, N], of each token under the model itself: raw logits, the whole
            vocabulary, no sampler. Behind a row's end, 0.
    """

    tokens: np.ndarray
    lengths: np.ndarray
    log_probs: np.ndarray


@struct.dataclass
class State:
    """Decoding between two tokens.

    Attributes:
        step: int32 scalar, tokens written.
        token: int32 [B], each row's last token, which is not in the cache yet.
        cache: the keys and values of those before it.
        done: bool [B], rows that have ended.
        seen: bool [B, V], the tokens that each row has, or None without a repetition penalty.
        keys: a typed PRNG key for each row, [B].
        tokens: int32 [B, N], as in `Generated`.
        lengths: int32 [B].
        log_probs: float32 [B, N].
    """

    step: jax.Array
    token: jax.Array
    cache: models.KVCache
    done: jax.Array
    seen: jax.Array | None
    keys: jax.Array
    tokens: jax.Array
    lengths: jax.Array
    log_probs: jax.Array


def generate(
    params: Any,
    prompts: Sequence[Sequence[int]] | np.ndarray,
    config: ModelConfig,
    key: jax.Array,
    *,
    max_new_tokens: int,
    sampler: SamplerConfig,
    stop_tokens: Sequence[int] = (),
    lengths: Sequence[int] | None = None,
) -> Generated:
    """Continues prompts.

    A row depends on its prompt, the key and its number, not on the other rows. With the same
    weights for many calls, pass `models.for_decoding(params, config)`, made once.

    Args:
        params: the model's parameters.
        prompts: token ids; lists of any lengths, or an array [B, S] with its rows' `lengths`.
        config: the model's.
        key: a typed PRNG key.
        max_new_tokens: N, where a row ends that meets no stop token.
        sampler: how tokens are chosen.
        stop_tokens: token ids that end a row.
        lengths: the tokens of each row of an array; by default all.

    Raises:
        ValueError: no prompt or an empty one, ids outside the vocabulary, or more tokens than
            the model has positions.
    """
    params = models.for_decoding(params, config)
    rows = as_rows(prompts, lengths)
    check(rows, config, max_new_tokens, stop_tokens)
    state = prefill(params, rows, config, key, max_new_tokens, sampler)
    state = decode(params, state, max_new_tokens, stop_ids(stop_tokens), config, sampler)
    written = np.s_[: len(rows), :max_new_tokens]
    return Generated(
        _fetch(state.tokens)[written],
        _fetch(state.lengths)[: len(rows)],
        _fetch(state.log_probs)[written],
    )


def _fetch(x: jax.Array) -> np.ndarray:
    """All of it, in every process."""
    if x.is_fully_addressable:
        return np.asarray(x)
    return multihost_utils.process_allgather(x, tiled=True)


def as_rows(
    prompts: Sequence[Sequence[int]] | np.ndarray, lengths: Sequence[int] | None = None
) -> list[np.ndarray]:
    """Each prompt's tokens, int32, without padding.

    Raises:
        ValueError: `lengths` do not fit the prompts.
    """
    rows = [np.asarray(prompt, np.int32) for prompt in prompts]
    if lengths is None:
        return rows
    if len(lengths) != len(rows):
        raise ValueError(f"there are {len(lengths)} lengths for {len(rows)} prompts")
    for index, (row, length) in enumerate(zip(rows, lengths, strict=True)):
        if length > len(row):
            raise ValueError(f"lengths[{index}]={length}, and prompt {index} has {len(row)} tokens")
    return [row[:length] for row, length in zip(rows, lengths, strict=True)]


def check(
    rows: list[np.ndarray], config: ModelConfig, max_new_tokens: int, stop_tokens: Sequence[int]
) -> None:
    """Raises ValueError for what `generate` cannot do."""
    if max_new_tokens < 1:
        raise ValueError(f"max_new_tokens={max_new_tokens}: must be at least 1")
    if not rows:
        raise ValueError("prompts is empty: give at least one prompt")
    for index, row in enumerate(rows):
        if row.ndim != 1 or not len(row):
            raise ValueError(f"prompt {index} has no tokens: begin it with the bos token, say")
        if row.min() < 0 or row.max() >= config.vocab_size:
            raise ValueError(
                f"prompt {index} has tokens from {row.min()} to {row.max()}, and the model's "
                f"vocabulary is 0 to {config.vocab_size - 1}"
            )
        if config.position == "learned" and len(row) + max_new_tokens > config.max_length:
            raise ValueError(
                f"prompt {index} has {len(row)} tokens, and with max_new_tokens={max_new_tokens} "
                f"exceeds the {config.max_length} learned positions of the model: shorten either"
            )
    for token in stop_tokens:
        if not 0 <= token < config.vocab_size:
            raise ValueError(f"stop token {token} is outside the vocabulary of {config.vocab_size}")


def stop_ids(stop_tokens: Sequence[int]) -> np.ndarray:
    """The tokens as an array."""
    return np.asarray(stop_tokens, np.int32).reshape(-1)


def prefill(
    params: Any,
    rows: list[np.ndarray],
    config: ModelConfig,
    key: jax.Array,
    max_new_tokens: int,
    sampler: SamplerConfig,
) -> State:
    """Reads the prompts, as `check` accepts them: the state before the first token is drawn."""
    longest = max(map(len, rows))
    capacity = _bucket(longest + max_new_tokens, _SMALLEST_PROMPT)
    if config.position == "learned":
        capacity = min(capacity, config.max_length)
    count = -(-len(rows) // mesh.size("batch")) * mesh.size("batch")
    tokens = np.zeros((count, min(_bucket(longest, _SMALLEST_PROMPT), capacity)), np.int32)
    lengths = np.zeros(count, np.int32)
    for index, row in enumerate(rows):
        tokens[index, : len(row)] = row
        lengths[index] = len(row)
    size = _bucket(max_new_tokens, _SMALLEST_OUTPUT)
    penalized = sampler.repetition_penalty != 1.0
    return _prefill(params, tokens, lengths, key, config, capacity, size, penalized)


@functools.partial(jax.jit, static_argnames=("config", "capacity", "size", "penalized"))
def _prefill(params, tokens, lengths, key, config, capacity, size, penalized) -> State:
    batch = tokens.shape[0]
    tokens = mesh.place(tokens, ("batch", None))
    lengths = mesh.place(lengths, ("batch",))
    columns = jnp.arange(tokens.shape[1])
    last = lengths[:, None] - 1
    cache = models.empty_cache(config, batch, capacity)
    _, cache = _append(params, tokens, columns < last, cache, config)
    rows = mesh.place(jnp.arange(batch), ("batch",))

    def zeros(axes, *shape, dtype=jnp.int32):
        return mesh.sharded(jnp.zeros, axes)(shape, dtype)

    return State(
        step=jnp.int32(0),
        token=jnp.sum(jnp.where(columns == last, tokens, 0), axis=1),
        cache=cache,
        done=lengths == 0,  # rows that only fill the mesh
        seen=_seen(tokens, columns <= last, config.vocab_size) if penalized else None,
        keys=jax.vmap(jax.random.fold_in, (None, 0))(key, rows),
        tokens=zeros(("batch", None), batch, size),
        lengths=zeros(("batch",), batch),
        log_probs=zeros(("batch", None), batch, size, dtype=jnp.float32),
    )


def _seen(tokens: jax.Array, valid: jax.Array, vocab_size: int) -> jax.Array:
    """Bool [B, V]: which tokens stand in each row where `valid`."""
    # What is not valid is written outside of the row, and so dropped.
    tokens = jnp.where(valid, tokens, vocab_size)

    def mark(row):
        return jnp.zeros(vocab_size, bool).at[row].set(True, mode="drop")

    return mesh.place(jax.vmap(mark)(tokens), LOGITS)


@functools.partial(jax.jit, static_argnames=("config", "sampler"), donate_argnames="state")
def decode(
    params: Any,
    state: State,
    limit: int | jax.Array,
    stop_tokens: jax.Array | np.ndarray,
    config: ModelConfig,
    sampler: SamplerConfig,
) -> State:
    """Writes tokens until `limit` are written or all rows have ended; uses up the state.

    Args:
        params: from `models.for_decoding`.
        state: from `prefill` or an earlier call.
        limit: tokens in all, at most N.
        stop_tokens: int32 [any].
        config: the model's.
        sampler: how tokens are chosen.
    """

    def going(state):
        return (state.step < limit) & ~jnp.all(state.done)

    return jax.lax.while_loop(
        going, lambda s: _step(params, s, stop_tokens, config, sampler), state
    )


def _step(params, state: State, stop_tokens, config, sampler) -> State:
    """One token for every row that has not ended."""
    going = ~state.done
    hidden, cache = _append(params, state.token[:, None], going[:, None], state.cache, config)
    logits = models.logits(params, hidden, config)[:, 0]
    keys = jax.vmap(jax.random.fold_in, (0, None))(state.keys, state.step)
    token = jnp.where(going, samplers.sample(keys, logits, sampler, state.seen), PAD_ID)
    chosen = jax.lax.broadcasted_iota(jnp.int32, logits.shape, 1) == token[:, None]
    log_prob = jnp.sum(jnp.where(chosen, logits, 0.0), axis=-1) - jax.nn.logsumexp(logits, axis=-1)
    start = (0, state.step)
    return State(
        step=state.step + 1,
        token=token,
        cache=cache,
        done=state.done | jnp.any(token[:, None] == stop_tokens, axis=1),
        seen=None if state.seen is None else state.seen | chosen,
        keys=state.keys,
        tokens=jax.lax.dynamic_update_slice(state.tokens, token[:, None], start),
        lengths=state.lengths + going,
        log_probs=jax.lax.dynamic_update_slice(
            state.log_probs, jnp.where(going, log_prob, 0.0)[:, None], start
        ),
    )


def _append(params, tokens, counted, cache, config) -> tuple[jax.Array, models.KVCache]:
    """The hidden states of tokens [B, S], and the cache with those that are counted."""
    segment_ids = counted.astype(jnp.int32)
    hidden, longer = models.apply(params, tokens, config, segment_ids=segment_ids, cache=cache)
    assert longer is not None  # one was given
    return hidden, longer


def _bucket(size: int, smallest: int) -> int:
    """The least power of two that holds `size`, and `smallest` at least."""
    return max(smallest, 1 << (size - 1).bit_length())
