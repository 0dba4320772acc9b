"""Words and sentences are datatrove's, whatever is remembered of texts before."""

import random
import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

pytest.importorskip("datatrove")

from datatrove.utils.text import split_into_sentences
from datatrove.utils.word_tokenizers import load_word_tokenizer

from llmjax.data.cleaning import C4Quality, Document, GopherQuality, gopher, shingles, words

TEXTS = {
    "en": "Mr. O'Neill's 3.5km run cost US$5... \"Why?\" he'd ask (e.g. on walks at 2 a.m.); don't!"
    " :-)\n\nSee https://example.org/a?b=c, x-ray/y_z. 1) A+B=C; 2) C++  \t#tag @me 50% ¯\\(ツ)/¯.",
    "nl": "Zie id. whens. cannot, id, Id; dont! z'n auto's d.w.z. 's avonds.",
    "de": "Das kostet z.B. 3,50 € – d.h. „zu viel“! Wer weiß's? Am 3. Mai um 10 Uhr.",
    "it": "L'uomo dell'isola, cioè lui: «Ciao!» Dov'è l'1,5 %? E' così...",
    "ru": "Это т.е. проверка — «кавычки» и 5 руб. Да?! Нет…",
    "sw": "Watu wote wamezaliwa huru. Hadhi na haki zao ni sawa!",
}
PIECES = [*":();-D8's.!?a<3_ \n\t\xa0", "...", "Ab", "n't", "  "]


@pytest.mark.parametrize("language", TEXTS)
def test_as_datatrove_cuts(language: str) -> None:
    tokenizer = load_word_tokenizer(language)
    for text in (TEXTS[language], TEXTS["en"], " ".join(TEXTS.values())):
        assert list(words.split(text, language)) == tokenizer.word_tokenize(text)
        assert words.count_sentences(text, language) == len(split_into_sentences(text, language))


@settings(max_examples=200, deadline=None, derandomize=True)
@given(st.lists(st.sampled_from(PIECES), max_size=25).map("".join))
def test_as_datatrove_cuts_smileys_and_spaces(text: str) -> None:
    assert list(words.split(text, "en")) == load_word_tokenizer("en").word_tokenize(text)
    assert words.count_sentences(text, "en") == len(split_into_sentences(text, "en"))


def test_a_language_without_a_tokenizer_is_cut_as_english() -> None:
    assert words.split(TEXTS["en"], "no such language") == words.split(TEXTS["en"], "en")


@pytest.mark.parametrize("said", [None, "", ["en"], {"code": "en"}, 7])
def test_records_that_say_their_language_in_another_form_are_cut_as_english(said) -> None:
    document = Document("It's fine.", metadata={"language": said})
    assert document.language == "en"
    assert document.words == ("It", "'s", "fine", ".")


def test_broken_unicode_is_cut_too() -> None:
    assert words.split("half\ud800 (a)", "en") == ("half", "?", "(", "a", ")")


def test_long_words_are_not_remembered() -> None:
    """Encoded pictures, or text without spaces that a step takes for another language."""
    draw = random.Random(0)
    rules = words._tokenizer("en")
    caches = [rules._cut, rules._kinds, gopher._length, gopher._has_letter, shingles._WITH_NUMBERS]
    sizes = []
    for _ in range(3):
        picture, prose = draw.randbytes(3000).hex(), "私たちは" * draw.randrange(99, 200)
        text = f"It is {picture}, see? And {prose} too."
        document = Document(text)
        for step in (GopherQuality(min_words=1, max_mean_word_length=9999), C4Quality()):
            step(document)
        shingles.hashes(shingles.WORD.findall(text))
        assert list(document.words) == load_word_tokenizer("en").word_tokenize(text)
        sizes.append([cache.cache_info().currsize for cache in caches])
    assert sizes[1] == sizes[2]


def test_what_is_remembered_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(words, "_FORGOTTEN_AFTER", 3)
    english = words._SpaCy("en")
    assert " ".join(english.words("I can't go, it's 5km!")) == "I ca n't go , it 's 5 km !"


def test_brackets_without_end_take_no_time() -> None:
    start = time.process_time()
    assert len(words.split("(" * 2000, "en")) == 2000
    assert time.process_time() - start < 5
