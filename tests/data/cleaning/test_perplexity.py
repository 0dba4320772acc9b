"""Documents are kept by the perplexity that a scorer gives them, one by one or many at once."""

import math

import pytest

from llmjax.data.cleaning import Document, Perplexity, Rejected, clean, perplexity

SCORES = {"easy": 5.0, "plain": 80.0, "strange": 9000.0, "nothing": math.inf}


def scorer(texts: list[str]) -> list[float]:
    return [SCORES[text] for text in texts]


STEP = perplexity.step(Perplexity(minimum=10, maximum=1000), scorer)


def test_both_bounds_hold() -> None:
    kept = STEP(Document("plain"))
    assert isinstance(kept, Document)
    assert kept.metadata["perplexity"] == 80.0
    reasons = {
        "easy": "perplexity too low",
        "strange": "perplexity too high",
        "nothing": "perplexity too high",
    }
    for text, reason in reasons.items():
        result = clean(Document(text), [STEP])
        assert isinstance(result, Rejected)
        assert (result.reason, result.score, result.step) == (reason, SCORES[text], "perplexity")


def test_many_at_once_are_one_by_one() -> None:
    documents = [Document(text) for text in SCORES]
    assert STEP.batch(documents) == [STEP(document) for document in documents]


def test_a_broken_model_is_an_error() -> None:
    """Not a document that is kept: no comparison with nan is true."""
    broken = perplexity.step(Perplexity(minimum=10, maximum=1000), lambda texts: [math.nan])
    with pytest.raises(ValueError, match="perplexity of nan"):
        broken(Document("plain"))


def test_wrong_settings_are_named() -> None:
    with pytest.raises(ValueError, match="perplexity.minimum=2 is above maximum=1"):
        Perplexity(minimum=2, maximum=1)
