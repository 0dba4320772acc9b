"""Every form that public sets have is read, to the same examples, and misfits are told apart."""

from typing import Any

import pytest

from llmjax.data import config, examples

SOURCE = config.ExampleSource("s", "unused.jsonl")
USER = {"role": "user", "content": "Why?"}
ANSWER = {"role": "assistant", "content": "Because."}
WORSE = {"role": "assistant", "content": "No."}
SYSTEM = {"role": "system", "content": "Be brief."}


def parse(kind: config.Kind, *fields: str, form: Any = "auto", **record: Any) -> examples.Example:
    return examples.parse(record, kind, config.ExampleSource("s", "p", form=form, fields=fields))


@pytest.mark.parametrize(
    "record",
    [
        {"messages": [USER, ANSWER]},
        {"messages": [{**USER, "name": None}, {**ANSWER, "tool_calls": None}]},
        {"messages": [{"role": "user", "content": [{"type": "text", "text": "Why?"}]}, ANSWER]},
        {
            "conversations": [
                {"from": "human", "value": "Why?"},
                {"from": "gpt", "value": "Because."},
            ]
        },
        {"instruction": "Why?", "input": "", "output": "Because."},
        {"prompt": "Why?", "completion": "Because."},
        {"prompt": [USER], "completion": [ANSWER], "text": "of another form"},
        {"question": "Why?", "answer": "Because."},
    ],
)
def test_all_forms_of_one_answer_are_one_example(record: dict[str, Any]) -> None:
    wanted = examples.Example(prompt=(USER,), answers=((ANSWER,),))
    assert examples.parse(record, "sft", SOURCE) == wanted


def test_parts_of_supervised_examples() -> None:
    assert parse("sft", text="Once.") == examples.Example(texts=("Once.",))
    with_input = parse("sft", instruction="Translate.", input="Ja", output="Yes")
    assert with_input.prompt == ({"role": "user", "content": "Translate.\n\nJa"},)
    with_system = parse("sft", system="Be brief.", instruction="Why?", output="Because.")
    assert with_system.prompt == (SYSTEM, USER)
    several = parse("sft", messages=[SYSTEM, USER, ANSWER, USER, WORSE])
    assert several.prompt == (SYSTEM, USER)
    assert several.answers == ((ANSWER, USER, WORSE),)
    # A form that is asked for goes before what is found; so do fields that are named.
    assert parse("sft", form="text", messages=[USER, ANSWER], text="Once.").texts == ("Once.",)
    assert parse("sft", "instruction:q", "output:a", q="Why?", a="Because.").answers == ((ANSWER,),)
    assert parse("sft", "text:body", body="b", text="t").texts == ("b",)


def test_classification() -> None:
    assert parse("classification", text="a", label="good").label == "good"
    assert parse("classification", text="a", label=2.0).label == 2
    assert parse("classification", text="a", label=True).label == 1
    pair = parse("classification", premise="a", hypothesis="b", label=0)
    assert (pair.texts, pair.label) == (("a", "b"), 0)


@pytest.mark.parametrize(
    "record",
    [
        {"prompt": "Why?", "chosen": "Because.", "rejected": "No."},
        {"prompt": [USER], "chosen": [ANSWER], "rejected": [WORSE]},
        {"prompt": "Why?", "chosen": [USER, ANSWER], "rejected": [USER, WORSE]},
        {"chosen": [USER, ANSWER], "rejected": [USER, WORSE]},
        {"prompt": "Why?", "responses": ["Because.", "No."]},
        {"responses": [[USER, ANSWER], [USER, WORSE]]},
    ],
)
def test_all_forms_of_one_comparison_are_one_example(record: dict[str, Any]) -> None:
    wanted = examples.Example(prompt=(USER,), answers=((ANSWER,), (WORSE,)))
    assert examples.parse(record, "comparison", SOURCE) == wanted


def test_scores_rank_and_margins_say_by_how_much() -> None:
    two = parse("comparison", prompt="Why?", responses=["No.", "Because."], scores=[1, 3.5])
    assert (two.answers, two.margin) == (((ANSWER,), (WORSE,)), 2.5)
    three = parse("comparison", prompt="Why?", responses=["a", "b", "c"], scores=[2, 3, 1])
    assert [answer[0]["content"] for answer in three.answers] == ["b", "a", "c"]
    assert three.margin == 0
    tied = parse("comparison", prompt="Why?", responses=["a", "b", "c"], scores=[2, 2, 1])
    assert [answer[0]["content"] for answer in tied.answers] == ["a", "c"]
    given = parse("comparison", prompt="Why?", chosen="a", rejected="b", margin=0.25)
    assert given.margin == 0.25


def test_prompts_keep_what_else_there_is() -> None:
    found = parse("prompt", question="2 + 2?", answer="4", level=3)
    assert found.prompt == ({"role": "user", "content": "2 + 2?"},)
    assert found.extra == {"answer": "4", "level": 3}
    assert parse("prompt", messages=[SYSTEM, USER, ANSWER]).prompt == (SYSTEM, USER)


def test_judged() -> None:
    found = parse("judged", prompt="Why?", completion="Because.", label=True)
    assert found == examples.Example(prompt=(USER,), answers=((ANSWER,),), label=1)
    assert parse("judged", prompt=[USER], completion=[WORSE], label=0).label == 0


def test_a_split_goes_by_what_is_asked() -> None:
    one, other = (parse("sft", instruction="Why?", output=answer) for answer in "ab")
    assert one.key == other.key != parse("sft", instruction="How?", output="a").key
    assert parse("sft", system="Be brief.", instruction="Why?", output="a").key == one.key
    # What nobody asked for goes by itself: else all of it would be on one side.
    alone = [parse("sft", messages=[SYSTEM, answer]).key for answer in (ANSWER, WORSE)]
    assert alone[0] != alone[1]


@pytest.mark.parametrize(
    ("kind", "record", "message"),
    [
        ("sft", {"body": "a", "title": "b"}, r"fits the fields \['body', 'title'\]: wanted"),
        ("sft", {"text": 3}, "field 'text' is not a string"),
        ("sft", {"text": " "}, "field 'text' is empty"),
        ("sft", {"instruction": "a", "output": ""}, "an answer is empty"),
        ("sft", {"messages": []}, "messages are not a list"),
        ("sft", {"messages": [USER]}, "nothing to train on"),
        ("sft", {"messages": ["Why?"]}, "a message is not an object"),
        ("sft", {"messages": [{"content": "a"}]}, "a message has no role"),
        ("sft", {"messages": [USER, {"role": "assistant", "content": 3}]}, "content is not text"),
        ("sft", {"messages": [USER, {"role": "assistant"}]}, "an answer is empty"),
        ("classification", {"text": "a"}, "no label: of .*'text'.* none is 'label'"),
        ("classification", {"text": "a", "label": -1}, "neither a name nor a number"),
        ("classification", {"text": "a", "label": 0.5}, "neither a name nor a number"),
        ("comparison", {"prompt": "a", "chosen": "b"}, "wanted chosen and rejected; or responses"),
        ("comparison", {"prompt": "a", "chosen": "b", "rejected": "b"}, "are the same"),
        ("comparison", {"chosen": "b", "rejected": "c"}, "no prompt"),
        ("comparison", {"chosen": [USER, ANSWER], "rejected": [ANSWER]}, "do not share"),
        ("comparison", {"prompt": "a", "responses": ["b"]}, "fewer than two"),
        ("comparison", {"prompt": "a", "responses": "bc"}, "is not a list"),
        ("comparison", {"prompt": "a", "responses": ["b", "c"], "scores": [1]}, "scores and"),
        ("comparison", {"prompt": "a", "responses": ["b", "c"], "scores": [1, 1]}, "same score"),
        ("comparison", {"prompt": "a", "responses": [*"bcd"], "margin": 1}, "exactly two"),
        ("comparison", {"prompt": "a", "responses": ["b", "c"], "margin": "x"}, "not a number"),
        ("prompt", {"answer": "4"}, "no prompt: of .*'answer'"),
        ("prompt", {"messages": [ANSWER]}, "no message to answer"),
        ("judged", {"prompt": "a", "completion": "b", "label": 2}, "neither true nor false"),
    ],
)  # fmt: skip
def test_misfits_say_why(kind: config.Kind, record: dict[str, Any], message: str) -> None:
    with pytest.raises(examples.UnfitError, match=message):
        examples.parse(record, kind, SOURCE)
