"""Cutting keeps a target and what stands next to it, and what is trained is what was answered."""

import math
import re
from typing import Any

import hypothesis
import numpy as np
import pytest
from hypothesis import strategies

from llmjax.data import chat, config, examples, tokenized, tokenizer

BYTES = tokenizer.ByteTokenizer()
PLAIN = chat.load_template("plain", BYTES)
JOINED = chat.load_template("joined", BYTES)
WORDS = strategies.text("ab é\n", min_size=1, max_size=30).filter(str.strip)
TURNS = strategies.lists(WORDS, min_size=1, max_size=7).filter(lambda turns: len(turns) % 2 == 1)


def encoder(template: chat.ChatTemplate | None = PLAIN, **settings: Any) -> tokenized.Encoder:
    return tokenized.Encoder(config.ExampleConfig(**settings), BYTES, template)


def messages(turns: list[str]) -> examples.Messages:
    """The user's and the assistant's words in turn."""
    return tuple(
        {"role": ("user", "assistant")[i % 2], "content": turn} for i, turn in enumerate(turns)
    )


def comparison(turns: list[str], answers: list[str]) -> examples.Example:
    replies = tuple(({"role": "assistant", "content": answer},) for answer in answers)
    return examples.Example(prompt=messages(turns), answers=replies)


def decode(sequence: np.ndarray, *, trained: bool) -> str:
    tokens, marks = tokenized.unsigned(sequence)
    return BYTES.decode(tokens[marks == trained])


def parted(sequence: np.ndarray) -> tuple[list[int], list[int]]:
    """The tokens before the first that is trained, and the others."""
    tokens, trained = tokenized.unsigned(sequence)
    start = int(np.flatnonzero(trained)[0])
    return tokens[:start].tolist(), tokens[start:].tolist()


@hypothesis.given(
    lengths=strategies.lists(strategies.integers(0, 5), min_size=1, max_size=4),
    label=strategies.integers(-1, 9),
    margin=strategies.floats(width=32, allow_nan=False),
    extra=strategies.dictionaries(strategies.text(), strategies.integers() | strategies.text()),
    data=strategies.data(),
)
def test_records_read_back(lengths, label, margin, extra, data) -> None:
    ids = strategies.integers(0, 2**31 - 1)
    tokens = [data.draw(strategies.lists(ids, min_size=n, max_size=n)) for n in lengths]
    marks = [
        data.draw(strategies.lists(strategies.booleans(), min_size=n, max_size=n)) for n in lengths
    ]
    sequences = tuple(
        tokenized.signed(np.array(t, np.int32), np.array(m, bool))
        for t, m in zip(tokens, marks, strict=True)
    )
    extra = {name: value for name, value in extra.items() if str(value).isprintable()}
    record = tokenized.Tokenized(sequences, label, margin, extra).to_bytes()
    found = tokenized.Tokenized.from_bytes(record)
    assert (found.label, found.margin, found.extra) == (label, margin, extra)
    assert found.length == sum(lengths)
    for sequence, ids_, marks_ in zip(found.sequences, tokens, marks, strict=True):
        assert tokenized.unsigned(sequence)[0].tolist() == ids_
        assert tokenized.unsigned(sequence)[1].tolist() == marks_


def test_what_is_trained_is_what_the_assistant_said() -> None:
    turns = ["Why?", "Because.", "Really?", "Yes."]
    example = examples.Example(prompt=messages(turns[:1]), answers=(messages(turns)[1:],))
    (all_,) = encoder().encode(example).sequences
    assert decode(all_, trained=True) == "Because.Yes."
    assert (all_ == BYTES.eos_id).sum() == 2  # the end of both turns is trained
    (last,) = encoder(train_on="last_answer").encode(example).sequences
    assert decode(last, trained=True) == "Yes."
    assert np.array_equal(tokenized.unsigned(last)[0], tokenized.unsigned(all_)[0])
    # Earlier answers are part of a comparison's prompt, whatever the answer's number of turns.
    (one, other) = encoder(kind="comparison").encode(comparison(turns[:3], ["a", "b"])).sequences
    assert [decode(one, trained=True), decode(other, trained=True)] == ["a", "b"]
    replies = ({"role": "assistant", "content": "a"}, *messages(["c", "d"]))
    long = examples.Example(prompt=messages(turns[:3]), answers=(replies,))
    (sequence,) = encoder(kind="judged").encode(long).sequences
    assert decode(sequence, trained=True) == "ad"


def test_texts_and_continuations() -> None:
    (text,) = encoder().encode(examples.Example(texts=("ab",))).sequences
    assert text.tolist() == [1, 4 + 97, 4 + 98, 2]
    cutting = encoder(max_length=8)
    (cut,) = cutting.encode(examples.Example(texts=("a" * 20,))).sequences
    assert (cut.tolist(), cutting.cut) == ([1, *[4 + 97] * 7], 1)
    joined = encoder(JOINED).encode(comparison(["The film is"], [" good"])).sequences[0]
    assert decode(joined, trained=False) == "The film is"
    assert decode(joined, trained=True) == " good"
    assert (joined[0], joined[-1]) == (~1, 2)


@hypothesis.given(
    turns=TURNS,
    answers=strategies.lists(WORDS, min_size=1, max_size=3, unique=True),
    length=strategies.integers(8, 120),
    share=strategies.floats(0.01, 1),
)
def test_cutting_keeps_the_target(
    turns: list[str], answers: list[str], length: int, share: float
) -> None:
    example = comparison(turns, answers)
    settings = {"kind": "comparison" if len(answers) > 1 else "judged", "target_share": share}
    whole = encoder(max_length=10**6, **settings).encode(example).sequences
    try:
        cutting = encoder(max_length=length, **settings)
        found = cutting.encode(example).sequences
    except examples.UnfitError as error:
        assert "the same up to max_length" in str(error)
        return
    if all(len(sequence) <= length for sequence in whole):
        assert all(map(np.array_equal, found, whole))
        assert not cutting.cut
        return
    assert cutting.cut == 1
    least = min(math.ceil(share * length), length - 1)
    beginnings = [
        parted(encoder(max_length=10**6, kind="judged").encode(c).sequences[0])[0]
        for c in (comparison(turns[i:], answers[:1]) for i in range(0, len(turns), 2))
    ]
    for sequence, before in zip(found, whole, strict=True):
        assert len(sequence) <= length
        prompt, target = parted(sequence)
        _, whole_target = parted(before)
        # The target loses only its end, and keeps its share of the length, or all of it.
        assert target == whole_target[: len(target)]
        assert len(target) >= min(least, len(whole_target))
        # The prompt is one from some turn on, or it is the last turn's and lost its beginning.
        assert prompt
        last = beginnings[-1]
        assert prompt in beginnings or (
            prompt[:1] + last[len(last) - len(prompt) + 1 :] == prompt and len(prompt) < len(last)
        )
        # No more is cut than must be: not the target while the prompt has more than the rest.
        if len(target) < len(whole_target):
            assert len(prompt) <= max(1, length - least)
            assert len(sequence) == length or len(target) >= least
    assert len({tuple(parted(sequence)[0]) for sequence in found}) == 1


def test_the_oldest_turns_go_first_and_the_system_stays() -> None:
    system = {"role": "system", "content": "Be brief."}
    turns = messages(["one", "two", "three", "four", "five"])
    prompts = [(system, *turns), (system, *turns[2:]), (system, *turns[4:])]

    def text(prompt: examples.Messages) -> str:
        return re.sub("</?s>", "", PLAIN.render(prompt, add_generation_prompt=True))

    for prompt in prompts:
        room = len(PLAIN.encode(prompt, add_generation_prompt=True)[0])
        (sequence,) = (
            encoder(kind="prompt", max_length=room)
            .encode(examples.Example(prompt=prompts[0]))
            .sequences
        )
        assert (sequence < 0).all()
        assert decode(sequence, trained=False) == text(prompt)
    (cut,) = (
        encoder(kind="prompt", max_length=20).encode(examples.Example(prompt=prompts[0])).sequences
    )
    assert (~cut[0], len(cut)) == (1, 20)
    assert text(prompts[0]).endswith(decode(cut, trained=False))


@hypothesis.given(
    texts=strategies.lists(WORDS, min_size=1, max_size=2), length=strategies.integers(8, 60)
)
def test_texts_to_classify_lose_their_ends(texts: list[str], length: int) -> None:
    cutting = encoder(None, kind="classification", max_length=length)
    (sequence,) = cutting.encode(examples.Example(texts=tuple(texts))).sequences
    tokens = (~sequence).tolist()
    whole = [BYTES.encode(text) for text in texts]
    assert len(tokens) == min(length, 1 + sum(len(ids) + 1 for ids in whole))
    assert tokens[0] == 1
    assert tokens[-1] == 2
    kept = "".join(map(chr, tokens[1:-1])).split("\2")
    assert len(kept) == len(texts)
    for part, ids in zip(kept, whole, strict=True):
        assert list(map(ord, part)) == ids[: len(part)]
    if len(texts) == 2 and len(tokens) == length:
        # The shorter is cut only once the other is no longer than it.
        sizes = list(map(len, kept))
        for i in (0, 1):
            assert sizes[i] == len(whole[i]) or sizes[i] >= sizes[1 - i] - 1


def test_nothing_to_train_on_is_unfit() -> None:
    marks_nothing = chat.ChatTemplate(
        "{% for m in messages %}{{ m.content }}{% generation %}{% endgeneration %}{% endfor %}",
        BYTES,
    )
    with pytest.raises(examples.UnfitError, match="generation marks contain nothing") as error:
        encoder(marks_nothing).encode(comparison(["Why?"], ["Because."]))
    assert "Why?" not in str(error.value)  # so that equal reasons are counted together
    with pytest.raises(examples.UnfitError, match="the same up to max_length"):
        encoder(kind="comparison", max_length=16).encode(
            comparison(["Why?"], ["x" * 40 + "a", "x" * 40 + "b"])
        )
