"""The automata find what a search in the tokens and in the text finds, at the same token."""

import itertools

import numpy as np
import pytest

from llmjax.data.tokenizer import ByteTokenizer, Tokenizer
from llmjax.sampling import stops
from llmjax.sampling.text import text_of, until


class Pieces(Tokenizer):
    """Tokens of any bytes; only for reading."""

    kind = "pieces"
    fingerprint = "pieces"

    def encode_batch(self, texts, num_threads=1):
        raise NotImplementedError


def ends(automata, rows) -> list[int | None]:
    """How many tokens of each row the automata read until they find something."""
    rows = np.asarray(rows)
    states = [np.zeros(len(rows), np.int32) for _ in automata]
    found = []
    for tokens in rows.T:
        states = [a.advance(s, tokens) for a, s in zip(automata, states, strict=True)]
        found.append(np.any(np.asarray(states) == stops.FOUND, axis=0))
    return [row.index(True) + 1 if any(row) else None for row in np.transpose(found).tolist()]


def search(row, sequences) -> int | None:
    for end in range(1, len(row) + 1):
        if any(tuple(row[:end][-len(s) :]) == tuple(s) for s in sequences):
            return end
    return None


@pytest.mark.parametrize(
    "sequences",
    [
        ((1,), (2,)),
        ((1, 1, 2),),
        ((1, 2, 1, 2, 3), (2, 1, 1)),
        ((0, 1), (1, 0, 0), (2, 2)),
        ((3,), (3, 1), (1, 2, 3, 1)),
        (),
    ],
)
def test_sequences_are_found_where_a_search_finds_them(sequences):
    automata = stops.automata(sequences, (), None, vocab_size=5)
    rows = np.random.RandomState(0).randint(0, 4, (40, 25)).tolist()
    assert ends(automata, rows) == [search(row, sequences) for row in rows]


PIECES = [
    b"",
    b"",
    b"",
    b"",
    b"\n",
    b"\n\n",
    b"a\n",
    b"\nU",
    b"ser",
    b"Us",
    b"er:",
    b"a",
    "é".encode(),
]
PIECES += ["é".encode()[:1], "é".encode()[1:], b"a\n\nb"]


@pytest.mark.parametrize(
    "texts", [("\n\n",), ("\nUser:", "aaa"), ("é", "é\n"), ("a\n\nUser:", "éa")]
)
def test_texts_are_found_however_tokens_spell_them(texts):
    """A row ends with the first token after which the text has a stop: not later, not earlier."""
    tokenizer = Pieces(PIECES)
    automata = stops.automata((), texts, tokenizer, vocab_size=len(PIECES) + 3)
    rows = np.random.RandomState(1).randint(0, len(PIECES), (60, 12)).tolist()
    found = ends(automata, rows)
    for row, end in zip(rows, found, strict=True):
        decoded = (tokenizer.decode(row[:end]) for end in range(1, len(row) + 1))
        contains = [any(text in d for text in texts) for d in decoded]
        expected = contains.index(True) + 1 if any(contains) else None
        assert end == expected
        whole = tokenizer.decode(row)
        before = min((whole.index(text) for text in texts if text in whole), default=len(whole))
        # What completes a stop may say more, and the text has nothing of either.
        assert text_of(row[:expected], tokenizer, stop_texts=texts) == whole[:before]
    assert None in found
    assert any(found)


def test_every_split_of_a_stop_into_tokens_is_found():
    text = b"<end>"
    for cuts in itertools.product([False, True], repeat=len(text) - 1):
        pieces, piece = [b"x"], text[:1]
        for cut, letter in zip(cuts, text[1:], strict=True):
            if cut:
                pieces.append(piece)
                piece = b""
            piece += bytes([letter])
        pieces.append(piece)
        automata = stops.automata((), ("<end>",), Pieces(pieces), vocab_size=len(pieces))
        assert ends(automata, [range(len(pieces))]) == [len(pieces)]


def test_shapes_are_shared_by_other_stops():
    one = stops.automata((2,), ("\n",), ByteTokenizer(), 260)
    other = stops.automata((2, (5, 6)), ("\n\n", "a"), ByteTokenizer(), 260)
    assert [a.steps.shape for a in one] == [a.steps.shape for a in other]


@pytest.mark.parametrize(
    ("pieces", "stop_texts", "expected"),
    [
        (["a", "b|", "|c"], ("||",), "ab"),
        (["a|", "b", "|"], ("||",), "a|b|"),
        (["xyz"], ("z", "y"), "x"),
        (["ab", "cd"], (), "abcd"),
        ([], ("a",), ""),
    ],
)
def test_until(pieces, stop_texts, expected):
    assert "".join(until(pieces, stop_texts)) == expected


def test_what_may_begin_a_stop_is_held_back():
    assert list(until(["a<", "b<e", "nd>c"], ("<end>",))) == ["a", "<b", ""]


def test_text_ends_before_stop_tokens():
    tokenizer = ByteTokenizer()
    row = tokenizer.encode("hello world")
    eos = tokenizer.eos_id
    for stop in (eos, np.int64(eos), np.array([eos])):
        assert text_of([*row, eos], tokenizer, stop_tokens=(stop,)) == "hello world"
    assert text_of(row, tokenizer, stop_tokens=(tokenizer.encode(" w"),)) == "hello"


def test_ids_that_pad_the_vocabulary_of_a_model_have_no_text():
    tokenizer = ByteTokenizer()
    row = [*tokenizer.encode("hel"), tokenizer.vocab_size, 50_303, *tokenizer.encode("lo")]
    assert text_of(row, tokenizer) == "hello"
