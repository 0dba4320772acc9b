"""Evaluation sets do not pass, and nothing else is held up."""

import json
import random

import pytest

from llmjax.data.cleaning import Document, Rejected, decontamination

WORDS = [f"{a}{b}{c}" for a in "bdfg" for b in "aeiou" for c in "klmnrst"]


def sentence(draw: random.Random, count: int) -> str:
    return " ".join(draw.choices(WORDS, k=count))


def disguised(text: str, draw: random.Random) -> str:
    """The same words in other capitals, marks and lines."""
    words = [draw.choice([w, w.upper(), w.title(), f"“{w}”", f"{w},"]) for w in text.split()]
    return "".join(word + draw.choice([" ", "\n", " - ", "  "]) for word in words)


def settings(**changes) -> decontamination.Decontamination:
    return decontamination.Decontamination(**{"window": 0, "least": 0, **changes})


def test_planted_leaks_are_cut_out_and_clean_documents_stay() -> None:
    draw = random.Random(0)
    examples = [(f"set:{i}", sentence(draw, draw.randrange(8, 40))) for i in range(50)]
    step = decontamination.step(examples, settings())
    for name, example in examples:
        before, after = sentence(draw, 30), sentence(draw, 30)
        clean = Document(f"{before}\n{after}")
        assert step(clean) is clean
        result = step(Document(f"{before}\n\n{disguised(example, draw)}\n\n{after}"))
        assert result.metadata == {"contamination": [name]}
        assert result.text.split()[:30] == before.split()
        assert result.text.split()[-30:] == after.split()
        # What is left of the quotation marks and dashes around it has no word.
        assert len([word for word in result.text.split() if word.isalpha()]) == 60


def test_a_window_around_a_leak_goes_and_short_pieces_do() -> None:
    """GPT-3's rule: 200 characters on either side, pieces of less than 200 dropped."""
    leak = sentence(random.Random(1), 13)
    text = "x" * 500 + " " + leak + " " + "y" * 398
    step = decontamination.step([("a", leak)], decontamination.Decontamination())
    assert step(Document(text)).text == "x" * 301
    long = step(Document(text + "yy"))
    assert long.text == "x" * 301 + "\n\n" + "y" * 201
    assert step(Document(leak)).reason == "mostly evaluation data"
    many = " ".join(f"{leak} {'z' * 700}" for _ in range(12))
    rejected = step(Document(many))
    assert isinstance(rejected, Rejected)
    assert (rejected.reason, rejected.score) == ("evaluation data in too many places", 12)


def test_reject_keeps_the_document_as_it_was() -> None:
    leak = sentence(random.Random(2), 13)
    step = decontamination.step([("a", leak)], settings(mode="reject"))
    rejected = step(Document(f"Quoted: {leak}", id="f:1"))
    assert isinstance(rejected, Rejected)
    assert rejected.document.text == f"Quoted: {leak}"
    assert rejected.document.metadata == {"contamination": ["a"]}


@pytest.mark.parametrize("known", [5, 14, 15, 21])
def test_a_share_of_an_example_must_be_found(known: int) -> None:
    """PaLM's measure: more than 70 % of the example's 8-grams; of 20 words there are 13."""
    example = [f"word{chr(97 + i)}" for i in range(20)]
    step = decontamination.step([("a", " ".join(example))], settings(n=8, share=0.7, mode="reject"))
    found = max(0, min(known, 20) - 7) / 13
    result = step(Document(" ".join(example[:known]) + " and so on"))
    assert isinstance(result, Rejected) == (found > 0.7)


def test_numbers_tell_examples_apart() -> None:
    example = "Ann has 3 apples and eats 2 of them so how many are left for Bob now"
    step = decontamination.step([("a", example)], settings())
    other = Document(example.replace("3", "4").replace("2", "1"))
    assert step(other) is other
    assert isinstance(step(Document(example)), Rejected)


def test_scripts_without_spaces() -> None:
    example = "人人生而自由在尊严和权利上一律平等他们赋有理性和良心"
    step = decontamination.step([("a", example)], settings())
    result = step(Document(f"我们知道{example[3:]}的意思很好"))
    assert result.text == "我们知道\n\n的意思很好"


def test_a_question_is_found_without_its_answer(tmp_path) -> None:
    question = "Which city hosted the first Olympic Games of the modern era?"
    (tmp_path / "a.jsonl").write_text(json.dumps({"q": question, "a": "Athens", "id": 7}) + "\n")
    step = decontamination.step(decontamination.examples([str(tmp_path)]), settings())
    result = step(Document(f"Question 9. {question} Answer: in Greece, at Athens."))
    assert (result.document if isinstance(result, Rejected) else result).metadata == {
        "contamination": ["a.jsonl:1"]
    }


def test_examples_out_of_files(tmp_path) -> None:
    (tmp_path / "a.jsonl").write_text(
        json.dumps({"question": "Why?", "choices": ["this", "that"], "answer": 1}) + "\n"
    )
    (tmp_path / "b.txt").write_text("first\n\nsecond\n")
    read = list(decontamination.examples([str(tmp_path)]))
    assert read == [
        *(("a.jsonl:1", text) for text in ("Why?\nthis\nthat", "Why?", "this", "that")),
        ("b.txt:1", "first"),
        ("b.txt:3", "second"),
    ]
    read = list(decontamination.examples([str(tmp_path / "a.jsonl")], fields=("question",)))
    assert read == [("a.jsonl:1", "Why?")]
    (tmp_path / "a.jsonl").write_text("{\n")
    with pytest.raises(ValueError, match=r"a\.jsonl, line 1"):
        list(decontamination.examples([str(tmp_path)]))
    with pytest.raises(FileNotFoundError, match="nothing to read"):
        list(decontamination.examples([str(tmp_path / "none")]))


def test_settings_are_checked() -> None:
    with pytest.raises(ValueError, match="share=1"):
        settings(share=1)
    with pytest.raises(ValueError, match="8 words"):
        decontamination.step([("a", "too short")], settings())
