"""Files with copies: originals stay, every copy says where it is from, counts add up."""

import json
import pathlib

import numpy as np
import pytest

from llmjax.data import augmentation, examples
from llmjax.data.augmentation import LabelAgreement, LengthRatio, Noise, Pair, Similarity, judge
from llmjax.data.config import ExampleSource

LABELLED = [
    {"text": f"A text of some words, number {i}", "label": ("good", "bad")[i % 2], "id": i}
    for i in range(40)
]
CHAT = {
    "messages": [
        {"role": "system", "content": "Be brief and friendly to everybody."},
        {"role": "user", "content": "Why is the sky so very blue today?"},
        {"role": "assistant", "content": "Because of scattering in the air."},
        {"role": "user", "content": "And why is it so red in the evening?"},
        {"role": "assistant", "content": "For the same reason, seen sideways."},
    ]
}
ALPACA = {"instruction": "Say what this word means.", "input": "blue sky", "output": "A sky, blue."}
NOISE = Noise(0.5, ("casing",))


def lines(path: pathlib.Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text("utf-8").splitlines()]


def run(folder: pathlib.Path, records: list, kind="classification", methods=(NOISE,), **options):
    source = folder / "in.jsonl"
    source.write_text("".join(json.dumps(r) + "\n" for r in records), "utf-8")
    output = folder / "out.jsonl"
    found = augmentation.augment_examples(
        ExampleSource("s", str(source)), output, methods, kind=kind, **options
    )
    return found, lines(output)


def test_originals_stay_and_copies_say_where_from(tmp_path: pathlib.Path) -> None:
    report, records = run(tmp_path, LABELLED, copies=2, seed=7)
    originals = [record for record in records if "augmentation" not in record]
    assert [{k: r[k] for k in LABELLED[0]} for r in originals] == LABELLED
    assert [r["origin"] for r in originals] == [f"in.jsonl:{i}" for i in range(1, 41)]
    copies = [record for record in records if "augmentation" in record]
    for copy in copies:
        about, number = copy["augmentation"], copy["id"]
        assert copy["origin"] == f"in.jsonl:{number + 1}"
        assert copy["label"] == LABELLED[number]["label"]
        text = LABELLED[number]["text"]
        made = augmentation.augment(text, NOISE, seed=7, copy=about["copy"])
        assert copy["text"] == made != text
        assert about == {"method": "noise", "seed": 7, "copy": about["copy"]}
    assert report.originals == 40
    assert report.written["noise"] == len(copies)
    assert report.written["noise"] + report.dropped["noise"].total() == 80
    # Each stands behind its original.
    assert [r["origin"] for r in records] == sorted(
        (r["origin"] for r in records), key=lambda o: int(o.partition(":")[2])
    )


def test_copies_do_not_depend_on_other_examples(tmp_path: pathlib.Path) -> None:
    _, every = run(tmp_path, LABELLED, seed=1)
    _, again = run(tmp_path, LABELLED, seed=1)
    _, some = run(tmp_path, LABELLED[::-3], seed=1)
    _, others = run(tmp_path, LABELLED, seed=2)
    assert every == again
    assert {r["text"] for r in some} < {r["text"] for r in every}
    assert {r["text"] for r in others} != {r["text"] for r in every}


def test_answers_are_never_written_anew(tmp_path: pathlib.Path) -> None:
    shout = Noise(1.0, ("casing",))
    _, (chat, chat_copy, alpaca, alpaca_copy) = run(
        tmp_path, [CHAT, ALPACA], kind="sft", methods=[shout]
    )
    for before, after in zip(chat["messages"], chat_copy["messages"], strict=True):
        assert (after == before) == (before["role"] != "user")
    assert alpaca_copy["instruction"] != alpaca["instruction"]
    assert (alpaca_copy["input"], alpaca_copy["output"]) == (alpaca["input"], alpaca["output"])


def test_pairs_and_prompts_are_read_where_they_are(tmp_path: pathlib.Path) -> None:
    shout = Noise(1.0, ("casing",))
    pair = {"premise": "it rains", "hypothesis": "it is wet", "label": 1}
    _, (_, copy) = run(tmp_path, [pair], methods=[shout])
    assert copy["premise"].split() != ["it", "rains"]
    assert copy["hypothesis"].lower() == "it is wet" != copy["hypothesis"]
    ranked = {"prompt": "why not?", "chosen": "because", "rejected": "no"}
    _, (_, copy) = run(tmp_path, [ranked], kind="comparison", methods=[shout])
    assert (copy["chosen"], copy["rejected"]) == ("because", "no")
    assert copy["prompt"] != "why not?"
    share = {"conversations": [{"from": "human", "value": "hello"}, {"from": "gpt", "value": "hi"}]}
    _, (_, copy) = run(tmp_path, [share], kind="sft", methods=[shout])
    assert copy["conversations"][0]["value"] in ("HELLO", "Hello")
    assert copy["conversations"][1]["value"] == "hi"


def test_answers_may_repeat_the_prompt(tmp_path: pathlib.Path) -> None:
    asked = {"role": "user", "content": "Why is the sky so very blue today?"}
    good, bad = ([asked, {"role": "assistant", "content": text}] for text in ("Light.", "Paint."))
    for kind, record in {
        "comparison": {"prompt": asked["content"], "chosen": good, "rejected": bad},
        "judged": {"prompt": [asked], "completion": good, "label": True},
    }.items():
        _, (original, copy) = run(tmp_path, [record], kind)
        source = ExampleSource("s", "-")
        before, after = (examples.parse(r, kind, source) for r in (original, copy))  # type: ignore[arg-type]
        assert after.answers == before.answers
        assert after.prompt != before.prompt
    _, (_, ranked) = run(
        tmp_path, [{"prompt": [asked], "responses": [good, "Paint."]}], "comparison"
    )
    assert ranked["responses"] == [good[1:], "Paint."]


def test_origins_outlast_a_second_augmentation(tmp_path: pathlib.Path) -> None:
    _, once = run(tmp_path, LABELLED[:4], seed=1)
    _, twice = run(tmp_path, once, seed=2)
    assert {r["origin"] for r in twice} == {f"in.jsonl:{i}" for i in range(1, 5)}
    assert {(r["origin"], r["id"]) for r in twice} == {(f"in.jsonl:{i + 1}", i) for i in range(4)}


def test_everything_that_is_not_kept_is_counted(tmp_path: pathlib.Path) -> None:
    class Cut(augmentation.Method):
        name, rate = "cut", 1.0

        def __call__(self, text, rng):
            return text if "2" in text else text.partition(" number")[0]

    report, records = run(
        tmp_path,
        [*LABELLED[:10], {"text": "", "label": "good"}, "no object"],
        methods=[Cut()],
        copies=2,
        checks=[LabelAgreement(lambda texts: ["good"] * len(texts))],
    )
    assert report.malformed == {"field 'text' is empty": 1, "not a JSON object": 1}
    assert report.dropped["cut"] == {"unchanged": 2, "another label": 10, "duplicate copy": 4}
    assert report.written["cut"] == 4
    assert len(records) == 14
    assert report.as_dict()["written"] == {"cut": 4}


def test_checks_by_what_they_measure() -> None:
    pairs = [
        Pair("a b c d", written) for written in ("a b", "a", "a b c d e f g h", "a " * 9, "a b c d")
    ]
    found = judge(pairs, [LengthRatio(0.5, 2.0)])
    assert [one.dropped for one in found] == ["", "length", "", "length", "unchanged"]
    assert found[0].scores == {"length_ratio": 0.5}

    def embed(texts):
        angles = np.array([float(text) for text in texts])
        return np.stack([np.cos(angles), np.sin(angles)], axis=1)

    found = judge([Pair("0.1", "0.6"), Pair("0.1", "1.2")], [Similarity(embed, 0.8)])
    assert [one.dropped for one in found] == ["", "low similarity"]
    assert found[1].scores["similarity"] == pytest.approx(np.cos(1.1), abs=1e-4)


def test_labels_agree_with_the_example_or_its_text() -> None:
    check = LabelAgreement(lambda texts: [text[0] for text in texts])
    pairs = [Pair("ax", "ay"), Pair("ax", "by"), Pair("ax", "by", "b"), Pair("ax", "ay", "b")]
    assert [one.dropped for one in judge(pairs, [check])] == [
        "",
        "another label",
        "",
        "another label",
    ]


def test_a_label_may_be_the_number_of_a_name() -> None:
    check = LabelAgreement(
        lambda texts: ["good" if "good" in t else "bad" for t in texts], ("bad", "good")
    )
    pairs = [Pair("a", text, label) for label in (0, 1, "bad", 2) for text in ("a good b", "b")]
    kept = [not one.dropped for one in judge(pairs, [check])]
    assert kept == [False, True, True, False, False, True, False, False]


def test_a_check_sees_only_what_is_left() -> None:
    seen = []

    def classify(texts):
        seen.extend(texts)
        return ["x"] * len(texts)

    judge([Pair("a b", "a b", "x"), Pair("a", "b", "x")], [LabelAgreement(classify)])
    assert seen == ["b"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"methods": ()}, "methods are"),
        ({"methods": (NOISE, NOISE)}, "distinct names"),
        ({"copies": 0}, "copies is 0"),
        ({"seed": -1}, "seed -1"),
    ],
)
def test_arguments_that_cannot_be(tmp_path: pathlib.Path, options: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        run(tmp_path, LABELLED, **options)


def test_an_input_is_never_overwritten(tmp_path: pathlib.Path) -> None:
    path = tmp_path / "in.jsonl"
    path.write_text(json.dumps(LABELLED[0]))
    for output in (path, tmp_path / "out.txt"):
        with pytest.raises(ValueError, match="name a .jsonl file that is not an input"):
            augmentation.augment_examples(
                ExampleSource("s", str(path)), output, [NOISE], kind="classification"
            )


def test_the_config_makes_what_it_names(thesaurus_file: str) -> None:
    names = ("noise", "back_translation", "synonyms", "restructuring")
    settings = augmentation.AugmentationConfig(names)
    assert tuple(method.name for method in settings.make_methods()) == names
    assert [check.name for check in settings.make_checks()] == ["length_ratio"]
    control = augmentation.ControlConfig(embedder="somewhere")
    with_all = augmentation.AugmentationConfig(control=control).make_checks(list)
    assert [check.name for check in with_all] == ["length_ratio", "similarity", "label_agreement"]
    with pytest.raises(ValueError, match="use some of synonyms, back_translation"):
        augmentation.AugmentationConfig(("typos",))
