"""Decodes generated tokens to text, up to the first stop."""

from collections.abc import Iterable, Iterator, Sequence

import numpy as np

from llmjax.data.tokenizer import StreamDecoder, Tokenizer


def text_of(
    tokens: Iterable[int],
    tokenizer: Tokenizer,
    *,
    stop_tokens: Sequence[int | Sequence[int]] = (),
    stop_texts: Sequence[str] = (),
) -> str:
    """The text of a row up to its first stop, or all of it."""
    return "".join(pieces_of([tokens], tokenizer, stop_tokens, stop_texts))


def pieces_of(
    pieces: Iterable[Iterable[int]],
    tokenizer: Tokenizer,
    stop_tokens: Sequence[int | Sequence[int]] = (),
    stop_texts: Sequence[str] = (),
) -> Iterator[str]:
    """Decodes tokens as they arrive; no piece is empty or ends inside a character.

    Tokens beyond the tokenizer's, by which a model may pad its vocabulary, have no text.
    """
    # Tokens are mapped to characters, so that `until` serves tokens and text alike.
    sequences = [_characters(sequence) for sequence in sequences_of(stop_tokens)]

    def decoded() -> Iterator[str]:
        decoder = StreamDecoder(tokenizer)
        for piece in until(map(_characters, pieces), sequences):
            yield decoder.push(token for token in map(ord, piece) if token < tokenizer.vocab_size)
        yield decoder.finish()

    return filter(None, until(decoded(), stop_texts))


def sequences_of(stop_tokens: Sequence[int | Sequence[int]]) -> list[list[int]]:
    """Stops that are tokens or sequences of tokens, all as sequences."""
    return [np.atleast_1d(np.asarray(stop, int)).tolist() for stop in stop_tokens]


def _characters(tokens: Iterable[int]) -> str:
    return "".join(map(chr, tokens))


def until(pieces: Iterable[str], stops: Sequence[str]) -> Iterator[str]:
    """Yields text up to the first stop; holds back what may be the beginning of one."""
    text = ""
    for piece in pieces:
        text += piece
        found = [place for stop in stops if (place := text.find(stop)) >= 0]
        if found:
            yield text[: min(found)]
            return
        begun = (n for stop in stops for n in range(1, len(stop)) if text.endswith(stop[:n]))
        ready = len(text) - max(begun, default=0)
        yield text[:ready]
        text = text[ready:]
    yield text
