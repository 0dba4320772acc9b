"""What is written in a form is read as the same example, or the form says what it cannot hold."""

import json
import pathlib
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmjax.data import config, conversion, examples, forms
from llmjax.data.examples import Example

SOURCE = config.ExampleSource("s", "unused.jsonl")
USER, ANSWER = {"role": "user", "content": "Why?"}, {"role": "assistant", "content": "So."}

text = st.text(min_size=1).filter(str.strip)
user = st.builds(lambda content: {"role": "user", "content": content}, text)
answer = st.builds(lambda content: {"role": "assistant", "content": content}, text)
system = st.builds(lambda content: {"role": "system", "content": content}, st.text())
prompts = st.tuples(st.lists(system, max_size=1), st.lists(user, max_size=2)).map(
    lambda parts: tuple(parts[0] + parts[1])
)
answers = st.tuples(st.lists(answer, min_size=1, max_size=1), st.lists(user, max_size=1)).map(
    lambda parts: tuple(parts[0] + parts[1])
)
HELD = {
    "instruction": "sft",
    "completion": "sft",
    "messages": "sft",
    "conversation": "sft",
    "sharegpt": "sft",
    "text": "sft",
    "classification": "classification",
    "preference": "comparison",
    "responses": "comparison",
}


@pytest.mark.parametrize("form", forms.FORMS)
@given(data=st.data())
def test_reading_undoes_writing(form: str, data: st.DataObject) -> None:
    kind: Any = HELD[form]
    if kind == "classification":
        label = data.draw(st.one_of(text, st.integers(0, 9)))
        example = Example(tuple(data.draw(st.lists(text, min_size=1, max_size=2))), label=label)
    elif form == "text":
        example = Example((data.draw(text),))
    elif kind == "comparison":
        some = data.draw(st.lists(answers, min_size=1, max_size=3, unique_by=repr))
        margin = data.draw(st.sampled_from((0.0, 1.5))) if len(some) == 2 else 0.0
        example = Example(prompt=data.draw(prompts), answers=tuple(some), margin=margin)
    else:
        example = Example(prompt=data.draw(prompts), answers=(data.draw(answers),))
    try:
        record = forms.to_record(example, form)
    except examples.UnfitError:
        return
    record = json.loads(json.dumps(record))
    read = examples.parse(record, kind, SOURCE)
    assert (read.texts, read.prompt, read.answers) == (
        example.texts,
        example.prompt,
        example.answers,
    )
    assert (read.label, read.margin) == (example.label, example.margin)


def test_the_textbooks_forms() -> None:
    """The chapter's three formats, from one to the other."""
    qa = {"instruction": "Answer.", "input": "What is JAX?", "output": "A library."}
    example = examples.parse(qa, "sft", SOURCE)
    assert forms.to_record(example, "conversation") == {
        "conversation": [
            {"role": "user", "content": "Answer.\n\nWhat is JAX?"},
            {"role": "assistant", "content": "A library."},
        ]
    }
    assert forms.to_record(example, "sharegpt")["conversations"][1] == {
        "from": "gpt",
        "value": "A library.",
    }
    review = examples.parse({"text": "Great.", "label": "positive"}, "classification", SOURCE)
    asked = forms.to_record(review, "instruction", "Is it positive or negative?")
    assert asked == {
        "instruction": "Is it positive or negative?\n\nGreat.",
        "input": "",
        "output": "positive",
    }


@pytest.mark.parametrize(
    ("example", "form", "message"),
    [
        (Example(("a",), label="b"), "messages", "needs a question"),
        (Example(("a", "b")), "text", "more than a text"),
        (Example(prompt=(USER,), answers=((ANSWER,),)), "classification", "no text with a label"),
        (Example(prompt=(USER,), answers=((ANSWER,),)), "preference", "needs two answers"),
        (Example(prompt=(USER,), answers=((ANSWER, USER, ANSWER),)), "instruction", "one answer"),
        (Example(prompt=(USER, ANSWER), answers=((ANSWER,),)), "messages", "would train"),
        (
            Example(prompt=(USER,), answers=((ANSWER,), (USER, ANSWER))),
            "messages",
            "more or fewer than one answer",
        ),
        (Example(answers=((ANSWER,),)), "completion", "no prompt"),
        (
            Example(prompt=(USER,), answers=(({**ANSWER, "name": "Ann"},),)),
            "sharegpt",
            "a ShareGPT turn cannot have 'name'",
        ),
    ],
)
def test_what_a_form_has_no_place_for(example: Example, form: str, message: str) -> None:
    with pytest.raises(examples.UnfitError, match=message):
        forms.to_record(example, form)


def test_files_are_converted_and_other_fields_kept(tmp_path: pathlib.Path) -> None:
    source, output = tmp_path / "in.jsonl", tmp_path / "out" / "messages.jsonl"
    records = [
        {"instruction": "Why?", "output": "So.", "task_type": "qa", "id": 3},
        {"instruction": "Why?", "output": ""},
        {"messages": [USER, ANSWER], "id": 4},
    ]
    source.write_text("".join(json.dumps(r) + "\n" for r in records) + "no json\n")
    written, left_out = conversion.convert(
        config.ExampleSource("s", str(source)), output, "sft", "messages"
    )
    assert written == 2
    assert left_out == {"an answer is empty": 1, "not JSON": 1}
    assert [json.loads(line) for line in output.read_text().splitlines()] == [
        {"task_type": "qa", "id": 3, "messages": [USER, ANSWER]},
        {"id": 4, "messages": [USER, ANSWER]},
    ]
    with pytest.raises(ValueError, match="not an input"):
        conversion.convert(config.ExampleSource("s", str(source)), source, "sft", "messages")
    with pytest.raises(ValueError, match="form is 'alpaca'"):
        conversion.convert(config.ExampleSource("s", str(source)), output, "sft", "alpaca")
