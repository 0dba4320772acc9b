"""Laws of all methods: pure, seeded, at the stated rate, and only words change."""

import collections
import pickle
import random
import re
import string

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llmjax.data import augmentation
from llmjax.data.augmentation import augment, grammar, noise, words

pytest.importorskip("lemminflect")

TEXTS = (
    "He watched a fast movie. The play was fast and quick, and they play well.",
    "Because it rained, we left the theater. The movies were errors!",
    "See https://a.b/movie, @movie, #film, film.mov and 3 movies at film@movie.org.",
    "MOVIE movies Movie's — été 日本語 \t\n\n  (film)",
)
GAPS = re.compile(r"[^\W\d_]+(?:['’-][^\W\d_]+)*")


def swapped(texts):
    return [text.swapcase() for text in texts]


@pytest.fixture(params=["synonyms", "restructuring", "noise", "back_translation"])
def method(request: pytest.FixtureRequest, thesaurus_file: str) -> augmentation.Method:
    return {
        "synonyms": augmentation.SynonymReplacement(0.5, thesaurus_file, mutual=False),
        "restructuring": augmentation.Restructuring(0.5),
        "noise": augmentation.Noise(0.3),
        "back_translation": augmentation.BackTranslation(0.5, swapped, list),
    }[request.param]


def test_equal_seeds_give_equal_texts(method: augmentation.Method) -> None:
    made = [augment(text, method, seed=seed) for seed in range(20) for text in TEXTS]
    again = [augment(text, method, seed=seed) for seed in range(20) for text in TEXTS]
    assert made == again
    assert len(set(made)) > len(TEXTS)
    copies = {augment(TEXTS[0], method, copy=copy) for copy in range(20)}
    assert len(copies) > 1


def test_other_texts_do_not_matter(method: augmentation.Method) -> None:
    rngs = [augmentation.generator(text, 3, 1) for text in TEXTS]
    alone = [augment(text, method, seed=3, copy=1) for text in TEXTS]
    assert method.batch(TEXTS, rngs) == alone
    assert pickle.loads(pickle.dumps(method)) == method


def test_addresses_and_numbers_stay(method: augmentation.Method) -> None:
    if method.name == "back_translation":
        return  # what a translator does is its own
    for seed in range(20):
        made = augment(TEXTS[2], method, seed=seed)
        for kept in ("https://a.b/movie,", "@movie", "#film", "film.mov", "film@movie.org", " 3 "):
            assert kept in made


@settings(max_examples=150, deadline=None)
@given(st.text(st.sampled_from(string.ascii_letters + " .,!?'\n\té日@:/-")), st.integers(0, 9))
def test_any_text_will_do(thesaurus_file: str, text: str, seed: int) -> None:
    for one in (
        augmentation.Noise(0.5),
        augmentation.Restructuring(),
        augmentation.SynonymReplacement(1.0, thesaurus_file, mutual=False),
        augmentation.BackTranslation(0.5, list, list),
    ):
        made = augment(text, one, seed=seed)
        if one.name == "synonyms":
            assert GAPS.split(made) == GAPS.split(text)
        if one.name == "back_translation":
            assert made == text


@given(st.text())
def test_words_and_gaps_are_the_text(text: str) -> None:
    found = words.words(text)
    assert words.exchanged(text, found, {i: word.text for i, word in enumerate(found)}) == text
    joined = "".join(word.gap + word.text for word in found)
    assert text.startswith(joined)


def within(count: int, total: int, rate: float) -> bool:
    """Whether a count is where a binomial one is but for one time in 100,000."""
    return abs(count - rate * total) < 4.5 * (total * rate * (1 - rate)) ** 0.5


@pytest.mark.parametrize("rate", [0.05, 0.3, 0.8])
def test_noise_hits_the_stated_share_of_words(rate: float) -> None:
    text = "word " * 8000
    made = augment(text, augmentation.Noise(rate, ("casing",)))
    assert within(sum(word != "word" for word in made.split()), 8000, rate)


@pytest.mark.parametrize("rate", [0.05, 0.3, 0.8])
def test_synonyms_replace_the_stated_share(rate: float, thesaurus_file: str) -> None:
    text = "The movie and the stone. " * 3000
    made = augment(text, augmentation.SynonymReplacement(rate, thesaurus_file))
    assert within(made.count("film"), 3000, rate)
    assert made.replace("film", "movie") == text


@pytest.mark.parametrize("rate", [0.05, 0.3, 0.8])
def test_sentences_are_drawn_at_the_stated_rate(rate: float) -> None:
    text = "This is one. " * 2000
    made = augment(text, augmentation.BackTranslation(rate, swapped, list))
    assert within(made.count("tHIS IS ONE."), 2000, rate)
    rebuilt = augment("Because it rained, we left it. " * 2000, augmentation.Restructuring(rate))
    assert within(rebuilt.count("We left it because it rained."), 2000, rate)


def test_kinds_of_noise_come_evenly() -> None:
    """Pearson's statistic of four kinds; 21.1 is passed once in 10,000."""
    made = augment("so\n" * 4000, augmentation.Noise(1.0)).splitlines()
    counts: collections.Counter[str] = collections.Counter()
    for word in made:
        if word == "so,":
            counts["punctuation"] += 1
        elif word in ("SO", "So"):
            counts["casing"] += 1
        else:
            counts["ocr" if set(word) & set("05") else "keyboard"] += 1
    # A line's end is no place for a comma.
    assert set(counts) == {"casing", "ocr", "keyboard"}
    spaced = augment("so " * 4000, augmentation.Noise(1.0)).split(" ")[:-1]
    counts = collections.Counter(
        "punctuation" if word == "so,"
        else "casing" if word in ("SO", "So")
        else "ocr" if set(word) & set("05") else "keyboard"
        for word in spaced
    )  # fmt: skip
    assert sum((count - 1000) ** 2 / 1000 for count in counts.values()) < 21.1
    assert len(counts) == 4


def test_keys_that_touch() -> None:
    """As they lie on a keyboard, for a few of them; and touching is mutual."""
    touching = {"g": "fhtyvb", "q": "wa", "a": "qwsz", "p": "ol", "m": "njk", "s": "adwezx"}
    for key, near in touching.items():
        assert set(noise._NEAR[key]) == set(near)
    pairs = {(a, b) for a, near in noise._NEAR.items() for b in near}
    assert pairs == {(b, a) for a, b in pairs}


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: augmentation.Noise(0.0), "Noise.rate is 0.0"),
        (lambda: augmentation.Restructuring(1.5), "Restructuring.rate is 1.5"),
        (lambda: augmentation.Noise(kinds=("typo",)), "use some of keyboard, ocr"),
        (lambda: augmentation.Restructuring(rules=()), "use some of clauses"),
        (lambda: augmentation.SynonymReplacement(senses=0), "senses is 0"),
    ],
)
def test_settings_that_cannot_be(make, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()


def test_parts_of_speech_are_told_where_neighbours_tell() -> None:
    def tell(text: str) -> list[str]:
        return grammar.parts_of_speech(words.words(text))

    assert tell("The play was good.") == ["", "NOUN", "", ""]
    assert tell("They play well.")[1] == "VERB"
    assert tell("We can watch the film.")[2] == "VERB"
    assert tell("A watch and my watch.") == ["", "NOUN", "", "", "NOUN"]
    assert tell("movie Movie")[1] == ""  # a name
    assert tell("Play it.")[0] == ""  # a noun, or what to do?


def test_forms_agree_for_every_reading() -> None:
    like = grammar.inflected_like
    assert like("movies", "NOUN", "film") == "films"
    assert like("children", "NOUN", "kid") == "kids"
    assert like("running", "VERB", "stop") == "stopping"
    assert like("took", "VERB", "carry") == "carried"
    assert like("faster", "ADJ", "quick") == "quicker"
    # `watched` is past tense and participle; of `see` these differ.
    assert like("watched", "VERB", "see") == ""
    assert like("faster", "ADJ", "beautiful") == ""


def test_a_generator_belongs_to_one_copy() -> None:
    draws = {augmentation.generator(t, s, c).random() for t in "ab" for s in (0, 1) for c in (0, 1)}
    assert len(draws) == 8
    assert augmentation.generator("a", 1, 0).random() == augmentation.generator("a", 1).random()
    assert isinstance(augmentation.generator("a"), random.Random)
