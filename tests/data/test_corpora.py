"""Corpora are cleaned by the stated rules, every dropped thing is counted."""

import json
import pathlib

import pytest

from llmjax.data import corpora


def dialogue(*turns: list[str]) -> dict[str, object]:
    """Turns of messages, as the package has them; the speakers take turns."""
    return {
        "messages": [
            [{"text": text, "sender": f"id{i % 2}", "timestamp": ""} for text in turn]
            for i, turn in enumerate(turns)
        ]
    }


def run(tmp_path: pathlib.Path, *dialogues: dict[str, object]) -> tuple[list[str], dict[str, int]]:
    raw = tmp_path / "dataset.json"
    raw.write_text(json.dumps({str(i): value for i, value in enumerate(dialogues)}))
    counts = corpora.chitchat(tmp_path / "out" / "chat.jsonl", raw)
    lines = (tmp_path / "out" / "chat.jsonl").read_text().splitlines()
    return [json.loads(line)["text"] for line in lines], counts


def test_dialogues_become_lines_of_turns(tmp_path: pathlib.Path) -> None:
    talk = dialogue(["Hello ", "How\n are  you?"], ["fine"], ["", "Good!", "asdf"])
    texts, counts = run(tmp_path, talk, talk, dialogue(["Anyone?"]))
    assert texts == ["A: Hello How are you?\nB: fine\nA: Good!\n"]
    assert counts == {
        "dialogues": 1, "turns": 3, "characters": len(texts[0]), "empty_messages": 2,
        "spam_messages": 2, "spam_dialogues": 0, "short_dialogues": 1, "copies": 1,
    }  # fmt: skip


def test_turns_merge_when_what_lay_between_was_dropped(tmp_path: pathlib.Path) -> None:
    words = [["one"], ["two"], ["three"], ["aaaa"], ["five"], ["six"]]
    texts, _ = run(tmp_path, dialogue(*words))
    assert texts == ["A: one\nB: two\nA: three five\nB: six\n"]


@pytest.mark.parametrize("spam", ["a", "a a a a", "AAAA", "asdf", "fd", "sdf asdf", "f"])
def test_spam_is_dropped_and_dialogues_of_it(tmp_path: pathlib.Path, spam: str) -> None:
    texts, counts = run(tmp_path, dialogue(["hi"], [spam], ["hello"], [spam]))
    assert texts == []
    assert (counts["spam_messages"], counts["spam_dialogues"]) == (2, 1)


@pytest.mark.parametrize("text", ["haha", "hmm", "sad", "?", ":)", "lol", "42", "as if", "no"])
def test_short_messages_are_not_spam(tmp_path: pathlib.Path, text: str) -> None:
    texts, _ = run(tmp_path, dialogue(["hi"], [text]))
    assert texts == [f"A: hi\nB: {text}\n"]


def test_prompts_go_on_as_dialogues_do(tmp_path: pathlib.Path) -> None:
    (text,), _ = run(tmp_path, dialogue(["hi there"], ["hello"], ["how are you?"], ["fine"]))
    prompt = corpora.chat_prompt(["hi  there", "hello", "how are you?"])
    assert text == prompt + " fine\n"
    assert corpora.chat_prompt([]) == "A:"


def test_writing_again_leaves_the_file_alone(tmp_path: pathlib.Path) -> None:
    path = tmp_path / "topics.jsonl"
    counts = corpora.python_topics(path)
    written = path.stat().st_mtime_ns
    texts = [json.loads(line)["text"] for line in path.read_text().splitlines()]
    assert counts == {"documents": len(texts), "characters": sum(map(len, texts))}
    assert counts["characters"] > 400_000
    assert corpora.python_topics(path) == counts
    assert path.stat().st_mtime_ns == written


def test_a_missing_package_is_named(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda _: None)
    with pytest.raises(ModuleNotFoundError, match="pip install chitchat-dataset"):
        corpora.chitchat(tmp_path / "chat.jsonl")
