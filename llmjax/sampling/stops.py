"""Stops: tokens, token sequences, and texts in any tokenization.

All are patterns for an automaton that reads a row token by token (Aho & Corasick 1975). For texts
the automaton's symbols are bytes, and a token makes the transitions of all its bytes at once, so
texts are found within a token and across tokens. The device only looks up the next state.
"""

import functools
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct

from llmjax import mesh
from llmjax.data.tokenizer import Tokenizer
from llmjax.sampling.prompts import power_of_two
from llmjax.sampling.text import sequences_of

START, FOUND = 0, 1  # states; the second is absorbing
_SMALLEST = 8  # states and kinds are padded to powers of two, so that patterns share programs


@struct.dataclass
class Automaton:
    """Finds patterns in a row of tokens.

    Attributes:
        kinds: int32 [V], token classes; tokens of a class have the same transitions.
        steps: int32 [states, kinds], the next state.
    """

    kinds: np.ndarray
    steps: np.ndarray

    def advance(self, states: jax.Array, tokens: jax.Array) -> jax.Array:
        """The states [B] after one more token of each row, [B]."""
        kinds = mesh.sharded(jnp.asarray(self.kinds).at[tokens].get, ("batch",))()
        return mesh.sharded(jnp.asarray(self.steps).at[states, kinds].get, ("batch",))()


def automata(
    stop_tokens: Sequence[int | Sequence[int]],
    stop_texts: Sequence[str],
    tokenizer: Tokenizer | None,
    vocab_size: int,
) -> tuple[Automaton, ...]:
    """Builds the automata that find the stops in the generated text.

    Args:
        stop_tokens: tokens, or sequences of tokens.
        stop_texts: texts.
        tokenizer: the model's tokenizer; needed for texts.
        vocab_size: V, of the model.

    Raises:
        ValueError: an empty sequence or text, a token outside the vocabulary, or texts without a
            tokenizer.
    """
    sequences = sequences_of(stop_tokens)
    for sequence in sequences:
        if not sequence:
            raise ValueError("stop_tokens: an empty sequence would end every row at once")
        for token in sequence:
            if not 0 <= token < vocab_size:
                raise ValueError(f"stop token {token} is outside the vocabulary of {vocab_size}")
    if isinstance(stop_texts, str):
        raise ValueError(f"stop_texts={stop_texts!r}: give a list of texts, not one text")
    if "" in stop_texts:
        raise ValueError("stop_texts: an empty text would end every row at once")
    if stop_texts and tokenizer is None:
        raise ValueError("stop_texts need a tokenizer: pass the model's")
    of_tokens = _of_tokens(tuple(map(tuple, sequences)), vocab_size)
    if tokenizer is None or not stop_texts:
        return (of_tokens,)
    return of_tokens, _of_texts(tuple(stop_texts), tokenizer, vocab_size)


@functools.lru_cache(maxsize=16)
def _of_tokens(sequences: tuple[tuple[int, ...], ...], vocab_size: int) -> Automaton:
    # Tokens that occur in no sequence have kind 0.
    kinds = np.zeros(vocab_size, np.int32)
    used = sorted({token for sequence in sequences for token in sequence})
    kinds[used] = np.arange(1, len(used) + 1)
    steps = _steps([kinds[list(sequence)].tolist() for sequence in sequences], len(used) + 1)
    return Automaton(kinds, _padded(steps))


@functools.lru_cache(maxsize=16)
def _of_texts(texts: tuple[str, ...], tokenizer: Tokenizer, vocab_size: int) -> Automaton:
    by_byte = _steps([list(text.encode()) for text in texts], 256)
    known = min(vocab_size, tokenizer.vocab_size)
    pieces = [tokenizer.piece(token) for token in range(known)] + [b""] * (vocab_size - known)
    sizes = np.array(list(map(len, pieces)))
    # A token without bytes, such as a special token, keeps the state.
    steps = np.tile(np.arange(len(by_byte), dtype=np.int32)[:, None], (1, vocab_size))
    for place in range(sizes.max()):
        longer = np.flatnonzero(sizes > place)
        letters = np.array([pieces[token][place] for token in longer])
        steps[:, longer] = by_byte[steps[:, longer], letters]
    columns, kinds = np.unique(steps, axis=1, return_inverse=True)
    return Automaton(kinds.reshape(-1).astype(np.int32), _padded(columns))


def _steps(patterns: Sequence[Sequence[int]], symbols: int) -> np.ndarray:
    """The transitions of an automaton that finds any of the patterns: int32 [states, symbols].

    A state is the longest suffix of the input that is a prefix of a pattern.
    """
    whole = {tuple(pattern) for pattern in patterns}
    begun = sorted(
        {pattern[:end] for pattern in whole for end in range(len(pattern))} | {()}, key=len
    )
    states = {read: place + (place >= FOUND) for place, read in enumerate(begun)}
    steps = np.full((len(states) + 1, symbols), START, np.int32)
    steps[FOUND] = FOUND
    for read, state in states.items():
        if read:  # The fallback: the longest proper suffix that is itself a state.
            later = next(read[at:] for at in range(1, len(read) + 1) if read[at:] in states)
            steps[state] = steps[states[later]]
        longer = {read_on for read_on in (*states, *whole) if read_on and read_on[:-1] == read}
        for end in longer:
            if steps[state, end[-1]] != FOUND:
                steps[state, end[-1]] = FOUND if end in whole else states[end]
    return steps


def _padded(steps: np.ndarray) -> np.ndarray:
    """Pads rows and columns to powers of two."""
    return np.pad(steps, [(0, power_of_two(size, _SMALLEST) - size) for size in steps.shape])
