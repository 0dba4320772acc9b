"""Tokenizers lose nothing, count every byte, and are the same every time."""

import codecs
import json
import pathlib

import hypothesis
import numpy as np
import pytest
from hypothesis import strategies

from llmjax.data import config, tokenizer

SYMBOLS = ("A:", "\nB: ")
TEXTS = [f"A: the storm\nB: of {i} seas, la tempête\tnaît  日本" for i in range(50)]
SETTINGS = config.TokenizerConfig(vocab_size=320, symbols=SYMBOLS)
TRAINED = tokenizer.train(SETTINGS, TEXTS)
BYTES = tokenizer.ByteTokenizer()

# Any valid Unicode, with what SentencePiece treats specially made frequent.
ANY_TEXT = strategies.lists(
    strategies.sampled_from(
        [" ", "  ", "\n", "\t", "\r\n", "\0", "\u2581", "\u2585", "\ufeff", "A:", "\nB: ", "<s>",
         "</s>", "<unk>", "<0x0A>", "the storm", "e\u0301", "😀", "\ufffd"]
    )
    | strategies.text(max_size=5)
).map("".join)  # fmt: skip

BOTH = pytest.mark.parametrize("encoder", [TRAINED, BYTES], ids=["sentencepiece", "bytes"])


@BOTH
@hypothesis.given(text=ANY_TEXT)
def test_round_trip_and_bytes(encoder: tokenizer.Tokenizer, text: str) -> None:
    ids = encoder.encode(text)
    assert encoder.decode(ids) == text
    assert encoder.token_bytes[ids].sum() == len(text.encode())
    assert all(tokenizer.NUM_SPECIAL <= token < encoder.vocab_size for token in ids)


@BOTH
@hypothesis.given(texts=strategies.lists(ANY_TEXT, max_size=5))
def test_a_batch_is_encoded_like_its_texts(encoder: tokenizer.Tokenizer, texts: list[str]) -> None:
    assert encoder.encode_batch(texts, num_threads=2) == [encoder.encode(text) for text in texts]


@BOTH
@hypothesis.given(text=ANY_TEXT, data=strategies.data())
def test_streaming_never_shows_half_a_character(
    encoder: tokenizer.Tokenizer, text: str, data: strategies.DataObject
) -> None:
    ids = encoder.encode(text)
    cuts = sorted(data.draw(strategies.lists(strategies.integers(0, len(ids)), max_size=4)))
    decoder, shown = tokenizer.StreamDecoder(encoder), ""
    for start, end in zip([0, *cuts], [*cuts, len(ids)], strict=True):
        shown += decoder.push(ids[start:end])
        assert text.startswith(shown)
    assert shown + decoder.finish() == text


def test_streaming_ends_a_broken_character() -> None:
    decoder = tokenizer.StreamDecoder(BYTES)
    assert decoder.push(BYTES.encode("é")[:1]) == ""
    assert decoder.finish() == codecs.decode(b"\xc3", errors="replace")


@BOTH
def test_special_tokens_are_where_they_must_be_and_add_nothing(
    encoder: tokenizer.Tokenizer,
) -> None:
    assert (encoder.pad_id, encoder.bos_id, encoder.eos_id) == (0, 1, 2)
    assert encoder.decode([1, *encoder.encode("sea"), 2, 0, 0]) == "sea"
    assert encoder.token_bytes[:4].tolist() == [0, 0, 0, 0]
    assert encoder.token_bytes.dtype == np.int32
    assert encoder.token_bytes.shape == (encoder.vocab_size,)


@pytest.mark.parametrize("symbol", SYMBOLS)
def test_symbols_are_one_token_anywhere(symbol: str) -> None:
    (token,) = TRAINED.encode(symbol)
    assert TRAINED.piece(token) == symbol.encode()
    assert token in TRAINED.encode(f"USA{symbol}storm")


def test_digits_stand_alone() -> None:
    assert len(TRAINED.encode("1234567")) == 7


def test_training_is_deterministic() -> None:
    again = tokenizer.train(SETTINGS, iter(TEXTS))
    assert again.fingerprint == TRAINED.fingerprint
    assert tokenizer.train(SETTINGS, TEXTS[::-1][:20]).fingerprint != TRAINED.fingerprint


@BOTH
def test_saving_and_loading(encoder: tokenizer.Tokenizer, tmp_path: pathlib.Path) -> None:
    encoder.save(tmp_path)
    loaded = tokenizer.load_tokenizer(tmp_path)
    assert loaded.fingerprint == encoder.fingerprint
    assert loaded.encode(TEXTS[0]) == encoder.encode(TEXTS[0])


def test_a_swapped_model_is_noticed(tmp_path: pathlib.Path) -> None:
    TRAINED.save(tmp_path)
    meta = tmp_path / tokenizer.META_FILE
    meta.write_text(json.dumps({**json.loads(meta.read_text()), "fingerprint": "other"}))
    with pytest.raises(ValueError, match="not the one"):
        tokenizer.load_tokenizer(tmp_path)


def test_errors_say_what_to_do(tmp_path: pathlib.Path) -> None:
    with pytest.raises(FileNotFoundError, match="Prepare the data"):
        tokenizer.load_tokenizer(tmp_path)
    with pytest.raises(ValueError, match="at character 1"):
        TRAINED.encode("a\ud800")
    with pytest.raises(ValueError, match=r"5000 .*Give more text"):
        tokenizer.train(config.TokenizerConfig(vocab_size=5000), TEXTS)
    with pytest.raises(ValueError, match="Give more text"):
        tokenizer.train(SETTINGS, [])
    for token in (-1, TRAINED.vocab_size):
        with pytest.raises(ValueError, match="not in the vocabulary"):
            TRAINED.decode([token])
