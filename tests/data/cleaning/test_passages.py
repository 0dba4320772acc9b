"""Repeated passages go where too many documents have them, and nothing else changes."""

import collections
import random

import hypothesis
import pytest
from hypothesis import strategies

from llmjax.data.cleaning import Document, Rejected, passages, pieces

UNITS = strategies.sampled_from(["sentence", "line", "paragraph"])


@hypothesis.given(text=strategies.text("ab .!?…。\n\t\r\"'”"), unit=UNITS)
def test_pieces_are_the_text(text: str, unit) -> None:
    assert "".join(pieces.cut(text, unit)) == text


def test_where_texts_are_cut() -> None:
    text = 'He said "No." Then he left.\nWhy? 他走了。为什么？\n\n  \nThe end'
    assert pieces.cut(text, "sentence") == [
        'He said "No." ', "Then he left.\n", "Why? ", "他走了。", "为什么？", "\n\n  \n", "The end"
    ]  # fmt: skip
    assert pieces.cut(text, "line")[0] == 'He said "No." Then he left.\n'
    assert pieces.cut(text, "paragraph") == [text.removesuffix("The end"), "The end"]


def settings(**changes) -> passages.Passages:
    return passages.Passages(**{"unit": "line", "shortest": 1, "least": 0, **changes})


def lines_of(draw: random.Random) -> list[Document]:
    """Documents of some lines out of few."""
    return [
        Document(
            "\n".join(f"line {draw.choice('abcdefghijkl')}" for _ in range(draw.randrange(1, 5))),
            id=f"f:{i}",
        )
        for i in range(20)
    ]


@pytest.mark.parametrize("keep_first", [True, False])
@pytest.mark.parametrize("most", [1, 3])
def test_what_is_repeated_is_what_counting_says(keep_first: bool, most: int) -> None:
    draw = random.Random(most)
    documents = lines_of(draw)
    counts = collections.Counter(line for d in documents for line in set(d.text.split("\n")))
    first = {line: d.id for d in reversed(documents) for line in d.text.split("\n")}
    expected = [
        [
            line
            for line in document.text.split("\n")
            if counts[line] <= most or (keep_first and first[line] == document.id)
        ]
        for document in documents
    ]
    chosen = settings(most=most, keep_first=keep_first)
    shards: list[list[Document]] = [[] for _ in range(4)]
    for document in draw.sample(documents, len(documents)):
        draw.choice(shards).append(document)
    step = passages.step([passages.index(shard, chosen) for shard in shards], chosen)
    results = [step(document) for document in documents]
    assert [r.text.split("\n") if r.text else [] for r in results] == expected
    for document, result, kept in zip(documents, results, expected, strict=True):
        gone = len(document.text.split("\n")) - len(kept)
        assert result.metadata == ({"repeated_passages": gone} if gone else {})
        assert gone or result is document


def test_spans_count_together() -> None:
    """C4's rule: three sentences in a row, wherever they stand."""
    chosen = settings(unit="sentence", span=3)
    documents = [
        Document("Zero. One. Two. Three. Four.", id="f:1"),
        Document("One. Two. Three. Five.", id="f:2"),
        Document("One. Two. Six. Two. Three. Zero.", id="f:3"),
    ]
    step = passages.step([passages.index(documents, chosen)], chosen)
    assert [step(document).text for document in documents] == [
        "Zero. One. Two. Three. Four.", "Five.", "One. Two. Six. Two. Three. Zero."
    ]  # fmt: skip


def test_short_passages_stay_and_short_rests_are_rejected() -> None:
    documents = [
        Document(f"Features:\nall rights are reserved by us\n{'own words ' * i}", id=f"f:{i}")
        for i in range(4)
    ]
    chosen = settings(shortest=3, least=4, keep_first=False)
    step = passages.step([passages.index(documents, chosen)], chosen)
    results = [step(document) for document in documents]
    assert [type(result) for result in results] == [Rejected, Rejected, Document, Document]
    assert results[0].reason == "mostly repeated passages"
    assert results[2].text == "Features:\nown words own words"


def test_settings_are_checked() -> None:
    with pytest.raises(ValueError, match="span=0"):
        settings(span=0)
    with pytest.raises(ValueError, match="unit='word'"):
        settings(unit="word")
    index = passages.index([Document("a", id="f:1")], settings())
    with pytest.raises(ValueError, match="make it again"):
        passages.step([index], settings(unit="paragraph"))
