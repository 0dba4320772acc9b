"""Decoding on the device: slots that prompts fill and that one compiled loop writes into.

Filling a slot writes all but the last token of a prompt into its row of the cache; the loop feeds a
token, draws the next and writes it down, until enough slots have met a stop or their limit. Prompts
are padded on the right, and their length, the cache and the output have sizes that are powers of
two, so that calls of similar size share their programs.
"""

import functools
import operator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct
from jax.experimental import multihost_utils

from llmjax import lookup, mesh, models
from llmjax.models import ModelConfig
from llmjax.sampling import prompts as sizes
from llmjax.sampling import samplers, stops
from llmjax.sampling.samplers import LOGITS, SamplerConfig

PAD_ID = 0


@struct.dataclass
class State:
    """Slots between two tokens.

    Attributes:
        token: int32 [B], each slot's last token, which is not in the cache yet.
        cache: the keys and values of those before it.
        done: bool [B], slots that write nothing: their row has ended, or they have none.
        seen: bool [B, V], the tokens that each row has, or None without a repetition penalty.
        stops: for each automaton its states, int32 [B].
        keys: a typed PRNG key for each row, [B].
        tokens: int32 [B, N], what was written; behind a row's end, 0.
        lengths: int32 [B], how many these are.
        log_probs: float32 [B, N], of these.
    """

    token: jax.Array
    cache: models.KVCache
    done: jax.Array
    seen: jax.Array | None
    stops: tuple[jax.Array, ...]
    keys: jax.Array
    tokens: jax.Array
    lengths: jax.Array
    log_probs: jax.Array


class Seats(NamedTuple):
    """Which prompts go into which slots.

    Attributes:
        origin: int32 [B], the number of each slot's prompt among those that are read; -1: it keeps
            what it has.
        keys: uint32 [B, ...], the data of the prompt's key.
        samples: int32 [B], which of a prompt's samples the slot writes; each draws by a key of its
            own.
    """

    origin: np.ndarray
    keys: np.ndarray
    samples: np.ndarray


def start(
    config: ModelConfig,
    slots: int,
    longest: int,
    max_new_tokens: int,
    *,
    most: int | None,
    penalized: bool,
    automata: int,
    key_kind: str,
) -> State:
    """Slots without rows.

    Args:
        config: the model's.
        slots: B; on a mesh, a multiple of the devices that share a batch.
        longest: tokens of a prompt, at most.
        max_new_tokens: tokens behind it, at most.
        most: of both together that the model takes, `models.longest_row`.
        penalized: whether the sampler has a repetition penalty.
        automata: how many there are.
        key_kind: the implementation of the keys.
    """
    capacity = sizes.bucket(longest + max_new_tokens)
    capacity = capacity if most is None else min(capacity, most)
    size = sizes.bucket(max_new_tokens)
    return _start(config, slots, capacity, size, penalized, automata, key_kind)


@functools.partial(jax.jit, static_argnums=range(7))
def _start(config, slots, capacity, size, penalized, automata, key_kind) -> State:
    def zeros(*shape, dtype=jnp.int32, axes=("batch", None)):
        return mesh.sharded(jnp.zeros, axes[: len(shape)])(shape, dtype)

    return State(
        token=zeros(slots),
        cache=models.empty_cache(config, slots, capacity),
        done=~zeros(slots, dtype=bool),
        seen=zeros(slots, config.vocab_size, dtype=bool, axes=LOGITS) if penalized else None,
        stops=tuple(zeros(slots) for _ in range(automata)),
        keys=jax.vmap(functools.partial(jax.random.key, impl=key_kind))(zeros(slots)),
        tokens=zeros(slots, size),
        lengths=zeros(slots),
        log_probs=zeros(slots, size, dtype=jnp.float32),
    )


@functools.partial(jax.jit, static_argnames="config", donate_argnames="state")
def fill(
    params: Any,
    state: State,
    tokens: jax.Array | np.ndarray,
    lengths: jax.Array | np.ndarray,
    seats: Seats,
    config: ModelConfig,
) -> State:
    """Reads prompts, each once, and puts them into slots; uses up the state.

    Args:
        params: from `models.for_decoding`.
        state: from `start` or an earlier call.
        tokens: int32 [P, S], the prompts, padded on the right.
        lengths: int32 [P], their tokens; 0 for what only fills a mesh.
        seats: where they go.
        config: the model's.
    """
    tokens = mesh.place(jnp.asarray(tokens), ("batch", None))
    lengths = mesh.place(jnp.asarray(lengths), ("batch",))
    origin = mesh.place(jnp.asarray(seats.origin), ("batch",))
    columns, last = jnp.arange(tokens.shape[1]), lengths[:, None] - 1
    cache = models.empty_cache(config, *tokens.shape)
    _, cache = _append(params, tokens, columns < last, cache, config)

    def put(old, new, axes=("batch", None)):
        """Rows of prompts, or what all have alike."""
        if new.ndim:
            new = lookup.take_rows(new, origin, axes[: new.ndim])
        return jnp.where(jnp.expand_dims(origin >= 0, range(1, old.ndim)), new, old)

    seen = state.seen
    if seen is not None:
        seen = put(seen, _seen(tokens, columns <= last, config.vocab_size), LOGITS)
    none = jnp.zeros((), jnp.int32)
    return State(
        token=put(state.token, jnp.sum(jnp.where(columns == last, tokens, 0), axis=1)),
        cache=models.put_rows(state.cache, cache, origin),
        done=state.done & (origin < 0),
        seen=seen,
        stops=tuple(put(old, none) for old in state.stops),
        keys=jnp.where(origin >= 0, _keys(seats, jax.random.key_impl(state.keys)), state.keys),
        tokens=put(state.tokens, none),
        lengths=put(state.lengths, none),
        log_probs=put(state.log_probs, none.astype(jnp.float32)),
    )


def _keys(seats: Seats, kind: Any) -> jax.Array:
    """A key for each slot, of its prompt's and the number of its sample."""
    data = mesh.place(jnp.asarray(seats.keys), ("batch", *(None,) * (seats.keys.ndim - 1)))
    samples = mesh.place(jnp.asarray(seats.samples), ("batch",))
    return jax.vmap(jax.random.fold_in)(jax.random.wrap_key_data(data, impl=kind), samples)


def _seen(tokens: jax.Array, valid: jax.Array, vocab_size: int) -> jax.Array:
    """Bool [P, V]: which tokens stand in each row where `valid`."""
    # What is not valid is written outside of the row, and so dropped.
    tokens = jnp.where(valid, tokens, vocab_size)

    def mark(row):
        return jnp.zeros(vocab_size, bool).at[row].set(True, mode="drop")

    return mesh.place(jax.vmap(mark)(tokens), LOGITS)


@functools.partial(jax.jit, static_argnames=("config", "sampler"), donate_argnames="state")
def decode(
    params: Any,
    state: State,
    automata: tuple[stops.Automaton, ...],
    config: ModelConfig,
    sampler: SamplerConfig,
    *,
    limit: int | jax.Array,
    steps: int | jax.Array,
    ended: int | jax.Array,
) -> State:
    """Writes tokens, one a step into every slot that is not done; uses up the state.

    Args:
        params: from `models.for_decoding`.
        state: from `fill` or an earlier call.
        automata: from `stops.automata`, what ends a row.
        config: the model's.
        sampler: how tokens are chosen.
        limit: tokens of a row, at most N, where it ends without a stop.
        steps: how many, at most.
        ended: it returns once so many slots are done.
    """

    def going(carry):
        step, state = carry
        return (step < steps) & (jnp.sum(state.done) < ended)

    def step(carry):
        step, state = carry
        return step + 1, _step(params, state, automata, config, sampler, limit)

    return jax.lax.while_loop(going, step, (jnp.int32(0), state))[1]


def _step(params, state: State, automata, config, sampler, limit) -> State:
    """One token for every slot that is not done."""
    going = ~state.done
    hidden, cache = _append(params, state.token[:, None], going[:, None], state.cache, config)
    logits = models.logits(params, hidden, config)[:, 0]
    keys = jax.vmap(jax.random.fold_in)(state.keys, state.lengths)
    token = jnp.where(going, samplers.sample(keys, logits, sampler, state.seen), PAD_ID)
    chosen = jax.lax.broadcasted_iota(jnp.int32, logits.shape, 1) == token[:, None]
    log_prob = jnp.sum(jnp.where(chosen, logits, 0.0), axis=-1) - jax.nn.logsumexp(logits, axis=-1)
    reached = tuple(
        automaton.advance(states, token)
        for automaton, states in zip(automata, state.stops, strict=True)
    )
    lengths = state.lengths + going
    stopped = functools.reduce(operator.or_, (states == stops.FOUND for states in reached))
    place = jnp.arange(state.tokens.shape[1]) == state.lengths[:, None]
    here = place & going[:, None]
    return State(
        token=token,
        cache=cache,
        done=state.done | stopped | (lengths >= limit),
        seen=None if state.seen is None else state.seen | chosen,
        stops=reached,
        keys=state.keys,
        tokens=jnp.where(here, token[:, None], state.tokens),
        lengths=lengths,
        log_probs=jnp.where(here, log_prob[:, None], state.log_probs),
    )


def _append(params, tokens, counted, cache, config) -> tuple[jax.Array, models.KVCache]:
    """The hidden states of tokens [B, S], and the cache with those that are counted."""
    segment_ids = counted.astype(jnp.int32)
    hidden, longer = models.apply(params, tokens, config, segment_ids=segment_ids, cache=cache)
    assert longer is not None  # one was given
    return hidden, longer


def fetch(x: jax.Array) -> np.ndarray:
    """All of it, in every process."""
    if x.is_fully_addressable:
        return np.array(x)  # a copy: the state that it is of will be used up
    return multihost_utils.process_allgather(x, tiled=True)
