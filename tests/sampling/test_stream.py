"""Streamed pieces join to the text that `generate` writes, and none ends inside a character."""

import itertools

import jax
import pytest

from llmjax import models, sampling
from llmjax import spec as specs
from llmjax.data.tokenizer import ByteTokenizer
from llmjax.sampling import SamplerConfig
from llmjax.sampling.text import pieces_of

TOKENIZER = ByteTokenizer()
CONFIG = models.llama(
    vocab_size=TOKENIZER.vocab_size, num_layers=1, embed_dim=16, num_heads=2, mlp_dim=32
)
PROMPT = [TOKENIZER.bos_id, *TOKENIZER.encode("né")]


@pytest.fixture(scope="module")
def params():
    return specs.init(jax.random.key(0), models.spec(CONFIG))


def arguments(**changes) -> dict:
    return {"max_new_tokens": 20, "sampler": SamplerConfig(temperature=2.0)} | changes


def pieces(params, **changes) -> list[str]:
    key = jax.random.key(1)
    return list(sampling.stream(params, PROMPT, CONFIG, key, TOKENIZER, **arguments(**changes)))


def tokens(params, **changes) -> list[int]:
    written = sampling.generate(params, [PROMPT], CONFIG, jax.random.key(1), **arguments(**changes))
    return written.tokens[0, : written.lengths[0]].tolist()


@pytest.mark.parametrize("chunk", [1, 3, 8, 100])
def test_pieces_join_to_the_text(params, chunk):
    assert "".join(pieces(params, chunk=chunk)) == TOKENIZER.decode(tokens(params))


def test_a_character_of_several_tokens_comes_whole():
    """The bytes of "né" over and over, one at a time; the last character is cut in half."""
    written = [[token] for token in TOKENIZER.encode("né" * 7)[:20]]
    found = list(pieces_of(written, TOKENIZER))
    assert "".join(found) == "né" * 6 + "n\ufffd"
    assert set(found) == {"n", "é", "\ufffd"}


def test_a_stop_token_ends_the_text_and_is_no_part_of_it(params):
    free = tokens(params)
    stop = free[11]
    assert "".join(pieces(params, stop_tokens=(stop,), chunk=4)) == TOKENIZER.decode(
        free[: free.index(stop)]
    )


@pytest.mark.parametrize("chunk", [1, 4, 100])
def test_sequences_and_texts_end_it_too(params, chunk):
    free = tokens(params)
    sequence = free[9:11]
    before = TOKENIZER.decode(free[:9])
    assert "".join(pieces(params, stop_tokens=(sequence,), chunk=chunk)) == before
    text = TOKENIZER.decode(free)
    # Two characters: what is broken has no bytes that a stop could have.
    stop = next(a + b for a, b in itertools.pairwise(text[4:]) if "\ufffd" not in a + b)
    found = "".join(pieces(params, stop_texts=(stop,), chunk=chunk))
    assert found == text[: text.index(stop)]
    row = tokens(params, stop_texts=(stop,), tokenizer=TOKENIZER)
    assert row == free[: len(row)]
    assert stop in TOKENIZER.decode(row)
    assert stop not in TOKENIZER.decode(row[:-1])


def test_steady_state_compiles_nothing(params, compilations):
    pieces(params)
    compilations.clear()
    pieces(params, max_new_tokens=19, chunk=5)
    assert not compilations


def test_what_cannot_be_is_refused_at_the_call(params):
    with pytest.raises(ValueError, match="chunk=0"):
        sampling.stream(params, PROMPT, CONFIG, jax.random.key(0), TOKENIZER, **arguments(chunk=0))
    with pytest.raises(ValueError, match="no tokens"):
        sampling.stream(params, [], CONFIG, jax.random.key(0), TOKENIZER, **arguments())
    key = jax.random.key_data(jax.random.key(0))
    with pytest.raises(ValueError, match="key is a plain uint32 array"):
        sampling.stream(params, PROMPT, CONFIG, key, TOKENIZER, **arguments())
