"""Decoding on the device: slots filled from prompts, and one compiled loop that extends them.

Filling a slot writes all but the last token of a prompt into the slot's row of the KV cache. The
loop feeds a token, samples the next and stores it, until enough slots have met a stop or their
limit. Prompts are right-padded. Prompt, cache and output lengths are rounded up to powers of two,
so that calls of similar size share their compiled programs.
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
    """The slots between two decoding steps.

    Attributes:
        token: int32 [B], each slot's last token, which is not in the cache yet.
        cache: keys and values of the tokens before it.
        done: bool [B], slots that write nothing: their row has ended, or they are empty.
        seen: bool [B, V], tokens that occur in each row; None without a repetition penalty.
        stops: int32 [B] for each automaton, its states.
        keys: typed PRNG key of each row, [B].
        tokens: int32 [B, N], the generated tokens; 0 after the end of a row.
        lengths: int32 [B], their number.
        log_probs: float32 [B, N], their log-probabilities.
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
    """The assignment of prompts to slots.

    Attributes:
        origin: int32 [B], index of each slot's prompt among those in the call; -1 leaves the slot
            as it is.
        keys: uint32 [B, ...], key data of the prompt.
        samples: int32 [B], index of the sample among those of its prompt; it is folded into the
            key.
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
    """Empty slots.

    Args:
        config: the model's configuration.
        slots: B; on a mesh, a multiple of the devices that split the batch.
        longest: maximum prompt length, in tokens.
        max_new_tokens: maximum number of generated tokens.
        most: the model's limit for both together, from `models.longest_row`.
        penalized: whether the sampler has a repetition penalty.
        automata: number of stop automata.
        key_kind: PRNG implementation of the keys.
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
    """Prefills prompts, each once, and puts them into slots; donates the state.

    Args:
        params: parameters from `models.for_decoding`.
        state: state from `start` or an earlier call.
        tokens: int32 [P, S], the right-padded prompts.
        lengths: int32 [P], prompt lengths; 0 for rows that only pad the batch on a mesh.
        seats: assignment of prompts to slots.
        config: the model's configuration.
    """
    tokens = mesh.place(jnp.asarray(tokens), ("batch", None))
    lengths = mesh.place(jnp.asarray(lengths), ("batch",))
    origin = mesh.place(jnp.asarray(seats.origin), ("batch",))
    columns, last = jnp.arange(tokens.shape[1]), lengths[:, None] - 1
    cache = models.empty_cache(config, *tokens.shape)
    _, cache = _append(params, tokens, columns < last, cache, config)

    def put(old, new, axes=("batch", None)):
        """Takes the rows of the slots' prompts, or a scalar that all share."""
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
    """A key per slot, from the key of its prompt and the index of its sample."""
    data = mesh.place(jnp.asarray(seats.keys), ("batch", *(None,) * (seats.keys.ndim - 1)))
    samples = mesh.place(jnp.asarray(seats.samples), ("batch",))
    return jax.vmap(jax.random.fold_in)(jax.random.wrap_key_data(data, impl=kind), samples)


def _seen(tokens: jax.Array, valid: jax.Array, vocab_size: int) -> jax.Array:
    """bool [P, V]: the tokens that occur in each row where `valid`."""
    # Invalid positions index out of range and are dropped.
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
    """Generates one token per step in every slot that is not done; donates the state.

    Args:
        params: parameters from `models.for_decoding`.
        state: state from `fill` or an earlier call.
        automata: stop automata from `stops.automata`.
        config: the model's configuration.
        sampler: how tokens are chosen.
        limit: tokens after which a row ends without a stop, at most N.
        steps: maximum number of steps.
        ended: returns once this many slots are done.
    """

    def going(carry):
        step, state = carry
        return (step < steps) & (jnp.sum(state.done) < ended)

    def step(carry):
        step, state = carry
        return step + 1, _step(params, state, automata, config, sampler, limit)

    return jax.lax.while_loop(going, step, (jnp.int32(0), state))[1]


def _step(params, state: State, automata, config, sampler, limit) -> State:
    """Generates one token in every slot that is not done."""
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
    """Hidden states of tokens [B, S], and the cache extended by the tokens that are `counted`."""
    segment_ids = counted.astype(jnp.int32)
    hidden, longer = models.apply(params, tokens, config, segment_ids=segment_ids, cache=cache)
    assert longer is not None  # because a cache was passed
    return hidden, longer


def fetch(x: jax.Array) -> np.ndarray:
    """The whole array as NumPy, in every process."""
    if x.is_fully_addressable:
        return np.array(x)  # a copy, because the state that holds x will be donated
    return multihost_utils.process_allgather(x, tiled=True)
