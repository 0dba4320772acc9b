"""Damage that is known is undone; what is sound stays as it is."""

import pathlib
import unicodedata

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llmjax.data.cleaning import Document, Repair

pytest.importorskip("ftfy")

SOUND = [
    "schön, naïve, Ærøskøbing, Łódź, “curly” and ‘single’ quotes – and — dashes…",
    "Все люди рождаются свободными и равными в своем достоинстве и правах.",
    "すべての人間は、生まれながらにして自由であり、ＡＢＣ１２３（全角）",
    "يولد جميع الناس أحرارًا متساوين في الكرامة والحقوق.",
    "x² ≤ ½·∑ᵢ xᵢ; ﬁne ligatures; 10 µm; 👩‍👩‍👧 🇩🇪",
    "if a &lt; b &amp;&amp; c: print('\\x1b[0m')  # &nbsp;\n\tfoo <- function(x) x %>% y\n",
]


def repaired(text: str, **settings) -> str:
    return Repair(**settings)(Document(text)).text


@pytest.mark.parametrize("text", SOUND)
def test_sound_text_stays(text: str) -> None:
    document = Document(unicodedata.normalize("NFC", text))
    assert Repair()(document) is document


@pytest.mark.parametrize("encoding", ["latin-1", "windows-1252"])
@pytest.mark.parametrize(
    "text", ["Es wäre schön, in Köln Äpfel für 5 € zu kaufen.", "L’été déjà passé — à Orléans"]
)
def test_mojibake_is_undone(text: str, encoding: str) -> None:
    if encoding == "latin-1":
        text = text.replace("€", "£").replace("’", "'").replace("—", "-")
    once = text.encode().decode(encoding)
    assert repaired(once) == text
    assert repaired(once.encode().decode("latin-1")) == text


def test_control_characters_go_and_layout_stays() -> None:
    assert repaired("a\x00b\x07c\x1b[31mred\x1b[0m\ufeff\r\nd\te\x0cf") == "abcred\nd\te\x0cf"
    assert repaired("\ud83d\ude00 \ud800") == "😀 �"


def test_normal_forms() -> None:
    text = "e\u0301 ﬁ Ａ"
    assert repaired(text) == "é ﬁ Ａ"
    assert repaired(text, normalization="NFKC") == "é fi A"
    assert repaired(text, normalization="none") == text


def test_what_a_writer_may_mean_is_changed_on_request_only() -> None:
    text = "“AT&amp;T” and ‘so on’"
    assert repaired(text) == text
    assert repaired(text, references=True) == "“AT&T” and ‘so on’"
    assert repaired(text, plain_quotes=True) == "\"AT&amp;T\" and 'so on'"
    assert repaired("AT&amp;T", references=True) == "AT&T"


def test_source_code_stays() -> None:
    """That of this project, except for what is damaged on purpose here."""
    root = pathlib.Path(__file__).parents[3]
    files = [*(root / "llmjax").rglob("*.py"), *(root / "tests" / "data").rglob("*.py")]
    assert len(files) > 100
    for path in set(files) - {pathlib.Path(__file__)}:
        text = path.read_text("utf-8")
        assert repaired(text) == text, path


@settings(max_examples=40, deadline=None)
@given(st.text())
def test_repairing_twice_repairs_once(text: str) -> None:
    once = repaired(text)
    assert repaired(once) == once
    assert unicodedata.is_normalized("NFC", once)
    once.encode("utf-8")


def test_wrong_settings_are_named() -> None:
    with pytest.raises(ValueError, match=r"repair.normalization='NFD': choose one of NFC"):
        Repair(normalization="NFD")
