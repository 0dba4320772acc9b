"""Tokens that were written as text, without what ended them."""

from collections.abc import Iterable, Iterator, Sequence

from llmjax.data.tokenizer import StreamDecoder, Tokenizer


def text_of(
    tokens: Iterable[int],
    tokenizer: Tokenizer,
    *,
    stop_tokens: Sequence[int | Sequence[int]] = (),
    stop_texts: Sequence[str] = (),
) -> str:
    """The text of a row, up to the first of the stops; without them, all of it."""
    return "".join(pieces_of([tokens], tokenizer, stop_tokens, stop_texts))


def pieces_of(
    pieces: Iterable[Iterable[int]],
    tokenizer: Tokenizer,
    stop_tokens: Sequence[int | Sequence[int]] = (),
    stop_texts: Sequence[str] = (),
) -> Iterator[str]:
    """The same from tokens as they come; no piece is empty or ends inside of a character."""
    # Tokens become characters by number, so that `until` serves for both.
    sequences = [_characters([stop] if isinstance(stop, int) else stop) for stop in stop_tokens]

    def decoded() -> Iterator[str]:
        decoder = StreamDecoder(tokenizer)
        for piece in until(map(_characters, pieces), sequences):
            yield decoder.push(map(ord, piece))
        yield decoder.finish()

    return filter(None, until(decoded(), stop_texts))


def _characters(tokens: Iterable[int]) -> str:
    return "".join(map(chr, tokens))


def until(pieces: Iterable[str], stops: Sequence[str]) -> Iterator[str]:
    """The text before the first stop; what may be the beginning of one is held back."""
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
