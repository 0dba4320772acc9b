"""Corpora are cleaned by the stated rules, every dropped thing is counted."""

import io
import itertools
import json
import pathlib
import tarfile
from typing import Any

import pytest

from llmjax.data import config, corpora, examples


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


def records(path: pathlib.Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_conversations_of_chatterbot(tmp_path: pathlib.Path) -> None:
    pytest.importorskip("yaml")
    (tmp_path / "ai.yml").write_text(
        "categories:\n- AI\nconversations:\n- - What is AI?\n  - A branch of\n    engineering.\n"
        "- - When?\n  - 1956\n  - Thanks\n- - What is AI?\n  - A branch of engineering.\n"
        "- - Hello\n"
    )
    counts = corpora.chatterbot(tmp_path / "out.jsonl", tmp_path)
    assert counts == {"conversations": 2, "turns": 4, "copies": 1, "short_conversations": 1}
    source = config.ExampleSource("c", "out.jsonl")
    parsed = [examples.parse(record, "sft", source) for record in records(tmp_path / "out.jsonl")]
    assert [(e.prompt[0]["content"], e.answers[0][0]["content"]) for e in parsed] == [
        ("What is AI?", "A branch of engineering."),
        ("When?", "1956"),
    ]
    with pytest.raises(FileNotFoundError, match=r"no file \*\.yml"):
        corpora.chatterbot(tmp_path / "out.jsonl", tmp_path / "none")


def archive(path: pathlib.Path, members: dict[str, bytes]) -> bytes:
    with tarfile.open(path, "w:gz") as tar:
        for name, content in members.items():
            entry = tarfile.TarInfo(name)
            entry.size = len(content)
            tar.addfile(entry, io.BytesIO(content))
    return path.read_bytes()


def test_scored_texts(tmp_path: pathlib.Path) -> None:
    scores = [3.5, -2.0, 0.5, 2.0, -0.5, 0.0, -3.0]
    lines = "".join(f"{i}\t{score}\tfilm &amp; {i}\r\n" for i, score in enumerate(scores))
    inner = archive(
        tmp_path / "hutto_ICWSM_2014.tar.gz",
        {
            "hutto/movieReviewSnippets_GroundTruth.txt": (lines + "9\t1.0\tfilm & 0\r\n").encode(),
            "hutto/tweets_GroundTruth.txt": b"1\t-4.0\tworse\r\n2\t4.0\tbetter",
            "hutto/_README_.txt": b"no texts",
        },
    )
    outer = tmp_path / "sdist.tar.gz"
    archive(outer, {"vader/additional_resources/hutto_ICWSM_2014.tar.gz": inner})
    out = tmp_path / "out.jsonl"
    assert corpora.sentiment(out, outer) == {"negative": 3, "positive": 3}
    found = {record["text"]: record["label"] for record in records(out)}
    assert found == {
        "film & 0": "positive", "film & 1": "negative", "film & 3": "positive",
        "film & 6": "negative", "worse": "negative", "better": "positive",
    }  # fmt: skip
    counts = corpora.sentiment_pairs(out, tmp_path / "hutto_ICWSM_2014.tar.gz", margin=1.5)
    pairs = records(out)
    assert counts["pairs"] == len(pairs) >= 3
    assert 2 * len(pairs) + counts["alone"] == len(scores) + 2
    used = [text for pair in pairs for text in (pair["chosen"], pair["rejected"])]
    assert len(set(used)) == len(used)
    by_text = {f"film & {i}": score for i, score in enumerate(scores)}
    by_text |= {"worse": -4.0, "better": 4.0}
    for i, pair in enumerate(pairs):
        assert pair["margin"] == by_text[pair["chosen"]] - by_text[pair["rejected"]] >= 1.5
        assert pair["pair"] == i
    left = [score for text, score in by_text.items() if text not in used]
    assert all(abs(a - b) < 1.5 for a, b in itertools.combinations(left, 2))
    archive(outer, {"a.txt": b""})
    with pytest.raises(ValueError, match="holds no texts with scores"):
        corpora.sentiment(out, outer)
