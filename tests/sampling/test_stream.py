"""Streamed pieces join to the text that `generate` writes, and none ends inside a character."""

import jax
import numpy as np
import pytest

from llmjax import models, sampling
from llmjax import spec as specs
from llmjax.data.tokenizer import ByteTokenizer
from llmjax.sampling import SamplerConfig, decode

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


def test_a_character_of_several_tokens_comes_whole(params, monkeypatch):
    """A model that writes the bytes of "né" over and over."""
    text = "né" * 7
    written = np.zeros((1, 32), np.int32)
    written[0, :20] = TOKENIZER.encode(text)[:20]  # the last character is cut in half

    def scripted(params, state, limit, *_):
        return state.replace(tokens=written, lengths=np.array([limit]))

    monkeypatch.setattr(decode, "decode", scripted)
    found = pieces(params, chunk=1)
    assert "".join(found) == "né" * 6 + "n\ufffd"
    assert set(found) == {"n", "é", "\ufffd"}


def test_a_stop_token_ends_the_text_and_is_no_part_of_it(params):
    free = tokens(params)
    stop = free[11]
    assert "".join(pieces(params, stop_tokens=(stop,), chunk=4)) == TOKENIZER.decode(
        free[: free.index(stop)]
    )


def test_steady_state_compiles_nothing(params):
    pieces(params)
    before = decode.decode._cache_size(), decode._prefill._cache_size()
    pieces(params, max_new_tokens=19, chunk=5)
    assert (decode.decode._cache_size(), decode._prefill._cache_size()) == before


def test_what_cannot_be_is_refused_at_the_call(params):
    with pytest.raises(ValueError, match="chunk=0"):
        sampling.stream(params, PROMPT, CONFIG, jax.random.key(0), TOKENIZER, **arguments(chunk=0))
    with pytest.raises(ValueError, match="no tokens"):
        sampling.stream(params, [], CONFIG, jax.random.key(0), TOKENIZER, **arguments())
