"""What each method makes of sentences, by hand-written cases."""

import collections
import pathlib
import shutil

import pytest

from llmjax.data import augmentation
from llmjax.data.augmentation import augment, sentences, words

pytest.importorskip("lemminflect")


def parts(text: str) -> list[str]:
    return [text[start:end] for start, end in sentences.spans(text)]


def test_sentences_end_at_marks_and_lines() -> None:
    assert parts("  One. Two!  Three? \n four\n\n") == ["One.", "Two!", "Three?", "four"]
    assert parts('He said "Stop." Then 3.5 left.') == ['He said "Stop."', "Then 3.5 left."]
    assert parts("Dr. A. Smith came. e.g. here") == ["Dr. A. Smith came. e.g. here"]
    assert parts("Wait... What") == ["Wait...", "What"]
    assert parts(" \n ") == []


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("The movies ended.", "The films ended."),
        ("MOVIES ended.", "FILMS ended."),
        ("Movies ended.", "Films ended."),
        ("He watched it.", "He viewed it."),
        ("They play well.", "They perform well."),
        ("The play was good.", "The drama was good."),
        ("I made a mistake.", "I made a mistake."),  # an error
        ("I made an error.", "I made an oversight."),
        ("He was watching out.", "He was watching out."),
        ("We can put it.", "We can set it."),
    ],
)
def test_synonyms_fit_into_their_places(text: str, wanted: str, thesaurus_file: str) -> None:
    assert augment(text, augmentation.SynonymReplacement(1.0, thesaurus_file)) == wanted


def test_synonyms_are_of_each_other(thesaurus_file: str) -> None:
    found = augmentation.SynonymReplacement(1.0, thesaurus_file)
    assert found.synonyms("film", "NOUN") == ["movie"]  # first of all a flick is a click
    every = augmentation.SynonymReplacement(1.0, thesaurus_file, senses=2)
    assert every.synonyms("film", "NOUN") == ["movie", "flick"]
    few = augmentation.SynonymReplacement(1.0, thesaurus_file, ambiguity=1, senses=2)
    assert few.synonyms("film", "NOUN") == ["movie"]  # as flick has two meanings


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("Because it rained, we left early.", "We left early because it rained."),
        ("We left the house because it rained.", "Because it rained, we left the house."),
        ("While it lasts, I like it!", "I like it while it lasts!"),
        ("I saw him after the show.", "After the show, I saw him."),
        ("It was slow and dull.", "It was dull and slow."),
        ("It has actors and singers, too.", "It has singers and actors, too."),
        ("It was written by Jane Austen.", "Jane Austen wrote it."),
        ("The film was directed by him.", "He directed the film."),
        ("They were chosen by us", "We chose them"),
    ],
)
def test_rules_of_restructuring(text: str, wanted: str) -> None:
    made = augment(text, augmentation.Restructuring())
    assert made == wanted


@pytest.mark.parametrize(
    "text",
    [
        "We left the house not because it rained.",
        "I did not leave it because it rained.",
        "I wonder if it rained.",
        "He likes it even though it rained.",
        "When did he leave, because it rained?",
        '"Because it rained, we left," she said.',
        "John left the house because it rained.",  # John, or a common noun?
        "It was parked by the river.",
        "It was finished by Monday.",
        "It was written by hand.",
        "A cat and owl.",
        "It has movie stars and fans.",
        "It delights newcomers to the story and those who know.",
        "Between rock and ice there is nothing.",
    ],
)
def test_what_is_not_sound_stays(text: str) -> None:
    assert {augment(text, augmentation.Restructuring(), copy=i) for i in range(5)} == {text}


def test_restructuring_keeps_the_words() -> None:
    text = "Because it rained, we left early. It was slow and dull. We saw it when it came."
    made = augment(text, augmentation.Restructuring(rules=("clauses", "pairs")))

    def bag(text: str) -> collections.Counter[str]:
        return collections.Counter(word.text.lower() for word in words.words(text))

    assert made != text
    assert bag(made) == bag(text)


def test_sentences_go_through_translators_once_each() -> None:
    asked: list[list[str]] = []

    def there(texts):
        asked.append(list(texts))
        return [f"<{text}>" for text in texts]

    def back(texts):
        return [text.strip("<>").replace("cat", "dog").replace("Mute.", "") for text in texts]

    method = augmentation.BackTranslation(1.0, there, back)
    rngs = [augmentation.generator("", 0, i) for i in range(2)]
    texts = ["A cat.  A cat.\nMute.", " A cat. Two"]
    assert method.batch(texts, rngs) == ["A dog.  A dog.\nMute.", " A dog. Two"]
    assert asked == [["A cat.", "Mute.", "Two"]]
    assert augment(" \n", method) == " \n"
    with pytest.raises(ValueError, match="returned 0 texts for 1"):
        augment("A cat.", augmentation.BackTranslation(1.0, lambda texts: [], list))


def program(path: pathlib.Path, body: str) -> str:
    path.write_text(f"#!/bin/sh\n{body}\n")
    path.chmod(0o755)
    return str(path)


def test_apertium_is_called_a_line_a_sentence(tmp_path: pathlib.Path) -> None:
    fake = program(tmp_path / "fake", 'echo "$@" > "$0.args"; tr a-z A-Z | sed "s/[.]$//"')
    translate = augmentation.Apertium("eng-spa", fake)
    assert translate(["Go  home.", "now"]) == ["GO HOME.", "NOW"]
    assert (tmp_path / "fake.args").read_text() == "-u -f line eng-spa\n"
    assert translate([]) == []


def test_a_translator_that_is_not_there_or_fails(tmp_path: pathlib.Path) -> None:
    with pytest.raises(RuntimeError, match="apt-get install apertium apertium-eng-spa"):
        augmentation.Apertium(program=str(tmp_path / "nothing"))(["a"])
    failing = program(tmp_path / "failing", "echo no such pair >&2; exit 1")
    with pytest.raises(RuntimeError, match="no such pair. If the pair is not installed"):
        augmentation.Apertium(program=failing)(["a"])
    short = program(tmp_path / "short", "cat > /dev/null")
    with pytest.raises(RuntimeError, match="gave 0 lines for 2 sentences"):
        augmentation.Apertium(program=short)(["a", "b"])


@pytest.mark.skipif(shutil.which("apertium") is None, reason="Apertium is not installed")
def test_a_sentence_to_spain_and_back() -> None:
    made = augment("The cat sleeps. I like the house.", augmentation.BackTranslation())
    assert "cat" in made
    assert "house" in made
    assert made.count(".") == 2
