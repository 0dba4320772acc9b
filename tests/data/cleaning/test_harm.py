"""Harmful sentences are those of the model and of the lists."""

import pickle

import numpy as np
import pytest

from llmjax.data.cleaning import Document, Rejected, harm, offence

SENTENCES = ("I like tea. ", "The weather is fine today. ", "She reads a book. ", "Bread is good. ")
RUDE = "You stupid idiot, shut up. "


def test_probabilities_are_those_of_the_package() -> None:
    profanity_check = pytest.importorskip("profanity_check")
    texts = [*SENTENCES, RUDE, "", "idiot idiot idiot dumb", "zzzzqqq", "Ünïcödé idiot"]
    expected = profanity_check.predict_prob(texts)
    np.testing.assert_allclose(offence.probabilities(texts), expected, rtol=1e-12)
    assert offence.probabilities([]).shape == (0,)


def test_offensive_sentences_go() -> None:
    pytest.importorskip("profanity_check")
    text = SENTENCES[0] + RUDE + "".join(SENTENCES[1:])
    result = harm.HarmfulContent(most=0.2)(Document(text))
    assert result.text == "".join(SENTENCES).rstrip()
    assert result.metadata == {"harm": {"offensive": 1}}
    counted = harm.HarmfulContent(remove=False)(Document(text))
    assert (counted.text, counted.metadata) == (text, result.metadata)
    rejected = harm.HarmfulContent(most=0.19)(Document(text))
    assert isinstance(rejected, Rejected)
    assert (rejected.reason, rejected.score) == ("harmful content", 0.2)
    clean = Document("".join(SENTENCES))
    assert harm.HarmfulContent()(clean) is clean


def test_lists_have_words_and_phrases_by_category(tmp_path) -> None:
    (tmp_path / "drugs.txt").write_text("Tea\n\nbread IS\n")
    (tmp_path / "books.txt").write_text("book\n")
    step = harm.HarmfulContent(
        threshold=None, lists=tuple(f"{n}={tmp_path / n}.txt" for n in ("drugs", "books")), most=1
    )
    result = step(Document("Steam and teapots. I LIKE TEA. Bread, is good. A book, bread."))
    assert result.text == "Steam and teapots."
    assert result.metadata == {"harm": {"books": 1, "drugs": 2}}
    assert pickle.loads(pickle.dumps(step)) == step


def test_settings_are_checked(tmp_path) -> None:
    with pytest.raises(ValueError, match="category=path"):
        harm.HarmfulContent(lists=("words.txt",))
    with pytest.raises(FileNotFoundError, match="none"):
        harm.HarmfulContent(lists=(f"a={tmp_path / 'none'}",))
    with pytest.raises(ValueError, match="threshold=2"):
        harm.HarmfulContent(threshold=2)
    (tmp_path / "empty").write_text("\n...\n")
    with pytest.raises(ValueError, match="no words"):
        harm.HarmfulContent(threshold=None, lists=(f"a={tmp_path / 'empty'}",))(Document("Hi."))
