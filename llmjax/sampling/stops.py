"""What ends a row: tokens, sequences of tokens, and texts however tokens spell them.

All are patterns, found by an automaton that takes a row's tokens one by one (Aho & Corasick 1975).
For texts its symbols are bytes, and a token takes the steps of all of its bytes at once, so that a
text is found across tokens and within one. The device only looks up the next state.
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

START, FOUND = 0, 1  # states; the second is never left
_SMALLEST = 8  # states and kinds come in powers of two, so that other patterns share programs


@struct.dataclass
class Automaton:
    """Finds patterns in a row of tokens.

    Attributes:
        kinds: int32 [V]; tokens of a kind make the same steps.
        steps: int32 [states, kinds], the next state.
    """

    kinds: np.ndarray
    steps: np.ndarray

    def advance(self, states: jax.Array, tokens: jax.Array) -> jax.Array:
        """The states [B] behind one more token of each row, [B]."""
        kinds = mesh.sharded(jnp.asarray(self.kinds).at[tokens].get, ("batch",))()
        return mesh.sharded(jnp.asarray(self.steps).at[states, kinds].get, ("batch",))()


def automata(
    stop_tokens: Sequence[int | Sequence[int]],
    stop_texts: Sequence[str],
    tokenizer: Tokenizer | None,
    vocab_size: int,
) -> tuple[Automaton, ...]:
    """Those that find the tokens and the texts, in the text that is written.

    Args:
        stop_tokens: tokens, or sequences of them.
        stop_texts: texts.
        tokenizer: whose tokens spell the texts.
        vocab_size: the model's, V.

    Raises:
        ValueError: an empty sequence or text, a token outside the vocabulary, or texts without a
            tokenizer.
    """
    sequences = [np.atleast_1d(np.asarray(stop, int)).tolist() for stop in stop_tokens]
    for sequence in sequences:
        if not sequence:
            raise ValueError("stop_tokens: an empty sequence would end every row at once")
        for token in sequence:
            if not 0 <= token < vocab_size:
                raise ValueError(f"stop token {token} is outside the vocabulary of {vocab_size}")
    if isinstance(stop_texts, str):
        raise ValueError(f"stop_texts={stop_texts!r}: give a list of texts, not one")
    if "" in stop_texts:
        raise ValueError("stop_texts: an empty text would end every row at once")
    if stop_texts and tokenizer is None:
        raise ValueError("stop_texts need a tokenizer, which says how tokens spell them")
    of_tokens = _of_tokens(tuple(map(tuple, sequences)), vocab_size)
    if tokenizer is None or not stop_texts:
        return (of_tokens,)
    return of_tokens, _of_texts(tuple(stop_texts), tokenizer, vocab_size)


@functools.lru_cache(maxsize=16)
def _of_tokens(sequences: tuple[tuple[int, ...], ...], vocab_size: int) -> Automaton:
    # All tokens that are in no sequence are of kind 0.
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
    # A token without bytes, a special one say, stays where it is.
    steps = np.tile(np.arange(len(by_byte), dtype=np.int32)[:, None], (1, vocab_size))
    for place in range(sizes.max()):
        longer = np.flatnonzero(sizes > place)
        letters = np.array([pieces[token][place] for token in longer])
        steps[:, longer] = by_byte[steps[:, longer], letters]
    columns, kinds = np.unique(steps, axis=1, return_inverse=True)
    return Automaton(kinds.reshape(-1).astype(np.int32), _padded(columns))


def _steps(patterns: Sequence[Sequence[int]], symbols: int) -> np.ndarray:
    """The automaton that finds any of the patterns: int32 [states, symbols].

    A state stands for the longest end of what was read that begins a pattern.
    """
    whole = {tuple(pattern) for pattern in patterns}
    begun = sorted(
        {pattern[:end] for pattern in whole for end in range(len(pattern))} | {()}, key=len
    )
    states = {read: place + (place >= FOUND) for place, read in enumerate(begun)}
    steps = np.full((len(states) + 1, symbols), START, np.int32)
    steps[FOUND] = FOUND
    for read, state in states.items():
        if read:  # What continues no pattern may continue one that began later.
            later = next(read[at:] for at in range(1, len(read) + 1) if read[at:] in states)
            steps[state] = steps[states[later]]
        longer = {read_on for read_on in (*states, *whole) if read_on and read_on[:-1] == read}
        for end in longer:
            if steps[state, end[-1]] != FOUND:
                steps[state, end[-1]] = FOUND if end in whole else states[end]
    return steps


def _padded(steps: np.ndarray) -> np.ndarray:
    """With rows and columns that are never used, to sizes that are powers of two."""
    return np.pad(steps, [(0, power_of_two(size, _SMALLEST) - size) for size in steps.shape])
