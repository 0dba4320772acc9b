"""Whatever a text holds, a step makes a document of it or a rejection, and again the same."""

import hypothesis
import pytest
from hypothesis import strategies

from llmjax.data.cleaning import (
    Decontamination,
    Document,
    HarmfulContent,
    MinHash,
    Passages,
    PersonalData,
    Rejected,
    Step,
    decontamination,
    exact,
    minhash,
    passages,
)

for library in ("rensa", "presidio_analyzer", "profanity_check"):
    pytest.importorskip(library)

PARTS = (
    *("a@b.com", "@", "x@y.\ud800", "é@ü.de", "4111 1111 1111 1111", "GB82WEST", "1.2.3.4", "::1"),
    *("+1 650 253 0000", "key: abc123def456ghi789", "-----BEGIN PRIVATE KEY-----", "eyJ", "\0"),
    *("\ud83d", "\u200b", "\u0300", "٣٤٥٦٧٨٩٠", "我", "ﬁ", "\r\n\r\n", "\x85", ". ", "same words"),
    *("RSSMRA85T10A562S", "219-09-9999", "²³¹", "①②③④⑤⑥⑦⑧⑨⑩⑪⑫⑬⑭⑮⑯", "१२३४५६७८"),
)
TEXTS = strategies.lists(strategies.sampled_from(PARTS) | strategies.text(max_size=9)).map("".join)


def steps(documents: list[Document]) -> list[Step]:
    """All steps, those that compare with what they know of the documents."""
    near, repeated = MinHash(), Passages(unit="sentence", shortest=1, least=1)
    leaks = [("a", "same words " * 6), ("b", "我" * 8)]
    return [
        exact.step([exact.index(documents)]),
        minhash.step([minhash.index(documents, near)], near),
        passages.step([passages.index(documents, repeated)], repeated),
        decontamination.step(leaks, Decontamination()),
        PersonalData(),
        HarmfulContent(),
    ]


@hypothesis.given(texts=strategies.lists(TEXTS, max_size=4))
@hypothesis.settings(max_examples=40, deadline=None)
def test_every_step_takes_every_text(texts: list[str]) -> None:
    documents = [Document(text, id=f"f:{i}") for i, text in enumerate(texts)]
    for step in steps(documents):
        for document in documents:
            result = step(document)
            assert isinstance(result, Document | Rejected)
            assert step(document) == result
            if isinstance(result, Rejected):
                assert result.document.text == document.text
