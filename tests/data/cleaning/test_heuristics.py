"""The heuristic steps decide as datatrove's filters do, and say why."""

import re

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from llmjax.data import cleaning

pytest.importorskip("datatrove")

from tools import corpora
from tools.benchmark import filters

PAIRS = filters.pairs()
SENTENCE = "It was the best of times, and that is all we have to say of the old days with you. "

# What makes rules act, in lines and paragraphs of all sorts.
WORDS = """the and of that with have be to Wort слово 漢字 e.g. don't U.S. C++ x=1 10km $5
# ... … - • * . ! ? ; ) ( [1] [] [edit] { } JavaScript " ' lorem-ipsum"""
PHRASES = ("lorem ipsum", "cookie policy", "[citation needed]", "w" * 300, "w" * 1001)
FRAGMENTS = st.sampled_from([*WORDS.split(), *PHRASES, SENTENCE, SENTENCE * 6])
SPACES = st.sampled_from([*" " * 6, "", "  ", *"\t\n\n\xa0\x85\u2028", "\n\n", "\n \n", "\r\n"])
TEXTS = st.lists(st.tuples(FRAGMENTS, SPACES), min_size=1, max_size=40).map(
    lambda parts: "".join(part + space for part, space in parts)
)


@pytest.fixture(scope="module")
def peers() -> dict:
    return {name: pair.make_filter("en") for name, pair in PAIRS.items()}


@settings(max_examples=120, deadline=None, derandomize=True)
@given(TEXTS)
@example("\n")
@example("...")
@example(f"{SENTENCE}\n" * 4 + SENTENCE * 20)
@example("one\n\ntwo\n\nthree\n\ntwo\n\n" + SENTENCE * 3)
@example("Six words that have an end. [1] [2]\n" + SENTENCE * 6)
@example("word " * 1001)
@example(" ".join(f"word{i}" for i in range(60)))
@example(" ".join(f"Wortungetüme{i}" for i in range(60)))
@example(" ".join(["a", "b", "c", "of", "the"] * 20))
@example("- the item of a list\n" * 20)
@example("and then, of the ...\n" * 12)
def test_as_datatrove_decides(peers, text: str) -> None:
    for name, pair in PAIRS.items():
        assert filters.ours(pair, text) == filters.theirs(peers[name], text), name


@pytest.mark.slow
@pytest.mark.parametrize("language", ["en", "de"])
def test_as_datatrove_decides_on_real_texts(language: str) -> None:
    """60,000 descriptions of Debian's packages; in German those that are translated."""
    try:
        records = corpora.read(corpora.fetch("debian"), language)
    except corpora.UnavailableError as error:
        pytest.skip(str(error))
    others = {name: pair.make_filter(language) for name, pair in PAIRS.items()}
    reasons = set()
    for number, record in enumerate(records):
        if number == 60_000:
            break
        for name, pair in PAIRS.items():
            expected = filters.theirs(others[name], record["text"])
            assert filters.ours(pair, record["text"], language) == expected, (name, record["id"])
            reasons.add(expected[0])
    assert number >= (60_000 if language == "en" else 10_000)
    assert len(reasons) > 15  # most rules have acted


@pytest.mark.parametrize(
    ("step", "problem"),
    [
        (
            lambda: cleaning.GopherQuality(min_words=-1),
            r"gopher_quality.min_words=-1: must be >= 0",
        ),
        (lambda: cleaning.GopherQuality(max_bullet_lines=1.5), "must be from 0 to 1"),
        (lambda: cleaning.GopherRepetition(top_ngrams=(2,)), "one share for each of top_ngrams"),
        (lambda: cleaning.GopherRepetition(max_top_characters=(0.2, -1, 0)), "must be >= 0"),
        (lambda: cleaning.FineWebQuality(max_short_lines=2), "fineweb_quality.max_short_lines=2"),
        (lambda: cleaning.C4Quality(min_sentences=-1), "c4_quality.min_sentences=-1"),
    ],
)
def test_wrong_settings_are_named(step, problem: str) -> None:
    with pytest.raises(ValueError, match=problem):
        step()


def test_a_rejection_has_the_number_that_decided() -> None:
    result = cleaning.clean(cleaning.Document("Only four words here."), [cleaning.GopherQuality()])
    assert isinstance(result, cleaning.Rejected)
    assert (result.step, result.reason, result.score) == ("gopher_quality", "too few words", 4)


def test_stop_words_are_those_of_the_language() -> None:
    text = "Der alte Mann ging langsam über die Straße, und niemand sah ihn in jener langen Nacht. "
    german = cleaning.Document(text * 4, metadata={"language": "de"})
    step = cleaning.GopherQuality()
    assert step(german) is german
    taken_for_english = step(cleaning.Document(german.text))
    assert isinstance(taken_for_english, cleaning.Rejected)
    assert taken_for_english.reason == "too few stop words"


@settings(deadline=None, max_examples=60)
@given(
    st.lists(
        st.sampled_from(["", " \t", "One is a line.", "Two, then!", "and javascript is it"]),
        min_size=1,
    ).map("\n".join)
)
def test_paragraphs_may_stay_apart(text: str) -> None:
    joined, apart = (
        cleaning.C4Quality(False, 1, min_sentences=0, paragraphs=paragraphs)(
            cleaning.Document(text)
        )
        for paragraphs in (False, True)
    )
    assert isinstance(joined, cleaning.Document)
    assert isinstance(apart, cleaning.Document)
    assert apart.text.replace("\n\n", "\n") == joined.text
    assert "\n\n\n" not in apart.text
    # Where nothing else goes, only the number of empty lines and outer space change.
    if "javascript" not in text:
        blocks = re.split(r"\n\s*\n", text.strip())
        assert apart.text == "\n\n".join(block.strip() for block in blocks if block.strip())


def test_citations_alone_do_not_set_paragraphs_apart() -> None:
    step = cleaning.C4Quality(terminal_marks=False, min_sentences=0, paragraphs=True)
    text = "One is a line.\n[1] [2] [3]\nTwo is one too.\n\n[4] [5] [6]\nThree is the last."
    found = step(cleaning.Document(text))
    assert isinstance(found, cleaning.Document)
    assert found.text == "One is a line.\nTwo is one too.\n\nThree is the last."
