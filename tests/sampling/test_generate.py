"""The entry point: a prompt, a file of prompts, a conversation, and what it refuses."""

import dataclasses
import json
import pathlib
import shutil

import jax
import pytest

from experiments import runs, writing
from experiments.flags import FlagError
from experiments.recipes import RECIPES
from llmjax import models
from llmjax import spec as specs
from llmjax.data.tokenizer import ByteTokenizer
from llmjax.sampling import SamplerConfig
from llmjax.train.checkpoint import Checkpointer
from llmjax.train.state import TrainState

SETTINGS = writing.Settings(max_new_tokens=12, sampler=SamplerConfig(temperature=0.9))


@pytest.fixture(scope="module")
def run_dir(tmp_path_factory) -> pathlib.Path:
    """A run of the tiny recipe that has trained for no step."""
    folder = tmp_path_factory.mktemp("run")
    recipe = RECIPES["tiny"]()
    runs.open_run(folder, recipe, resume=False)
    (folder / "data").mkdir()
    ByteTokenizer().save(folder / "data")
    params = specs.init(jax.random.key(0), models.spec(recipe.model))
    step = jax.numpy.int32(3)
    with Checkpointer(folder / "checkpoints") as checkpoints:
        checkpoints.save(TrainState(step, params, (), jax.random.key(0)))
    return folder


@pytest.fixture(scope="module")
def writer(run_dir) -> writing.Writer:
    return writing.Writer(runs.load(run_dir), SETTINGS)


def stopping(writer: writing.Writer, *stops: str) -> writing.Writer:
    return writing.Writer(writer.model, dataclasses.replace(SETTINGS, stops=stops))


def test_a_run_whose_checkpoints_are_damaged_is_told_in_one_line(run_dir, tmp_path):
    folder = shutil.copytree(run_dir, tmp_path / "run")
    (folder / "checkpoints/3/manifest.json").write_text("{}")
    with (
        pytest.warns(RuntimeWarning, match="skipped a damaged checkpoint"),
        pytest.raises(FlagError, match="no checkpoint in .* is sound"),
    ):
        runs.load(folder)


def test_a_stream_and_a_batch_write_the_same(writer):
    streamed = "".join(writer.stream("import ", number=4))
    (completed,) = writer.complete(["import "], number=4)
    assert completed["completion"] == streamed
    assert completed["tokens"] == 12
    assert completed["log_prob"] < 0


def test_a_stop_cuts_the_text(writer):
    whole = "".join(writer.stream("import "))
    for stop in (whole[4], whole[4:7]):
        found = stopping(writer, stop)
        assert "".join(found.stream("import ")) == whole[: whole.index(stop)]
        (completed,) = found.complete(["import "])
        assert completed["completion"] == whole[: whole.index(stop)]
    with pytest.raises(ValueError, match="stop"):
        stopping(writer, "")


def test_a_file_comes_back_with_completions(writer, tmp_path):
    path, output = tmp_path / "in.jsonl", tmp_path / "out.jsonl"
    records = [{"prompt": "é", "id": 1}, {"prompt": ""}, {"prompt": "import this"}]
    path.write_text("\n\n".join(map(json.dumps, records)))
    writing.complete_file(writer, writing.read_prompts(str(path)), str(output), 2, 2)
    written = [json.loads(line) for line in output.read_text("utf-8").splitlines()]
    assert [line["prompt"] for line in written] == ["é", "é", "", "", "import this", "import this"]
    assert written[0]["id"] == 1
    assert written[0]["completion"] != written[1]["completion"]
    assert all(line["completion"] for line in written)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "in.jsonl:1: not JSON"),
        ('{"prompt": "a"}\n{"text": "b"}', 'in.jsonl:2: not an object with a text "prompt"'),
        ("[1]", "in.jsonl:1: not an object"),
        ("\n", "contains no prompts"),
        (None, "No such file"),
    ],
)
def test_a_file_that_cannot_be_used_is_refused(tmp_path, content, message):
    path = tmp_path / "in.jsonl"
    if content is not None:
        path.write_text(content)
    with pytest.raises(FlagError, match=message):
        writing.read_prompts(str(path))


def talk(monkeypatch, writer, lines) -> list[str]:
    """Runs a conversation with scripted input; returns the prompts that the model got."""
    prompts = []
    script = iter(lines)

    def read(_):
        line = next(script)
        if isinstance(line, BaseException):
            raise line
        return line

    def stream(prompt, number=0):
        prompts.append(prompt)
        yield "Well"
        if "stop me" in prompt:
            raise KeyboardInterrupt
        yield "..."

    monkeypatch.setattr("builtins.input", read)
    monkeypatch.setattr(writer, "stream", stream)
    writing.chat(writer)
    return prompts


def test_a_conversation_remembers_and_forgets(monkeypatch, writer, capsys):
    lines = ["one", "", "stop me", KeyboardInterrupt(), "/reset", "two", "/quit", "never"]
    prompts = talk(monkeypatch, writer, lines)
    assert prompts == ["one", "oneWell...stop me", "two"]
    out = capsys.readouterr().out
    assert "tiny, step 3" in out
    assert "Well\n" in out  # the reply that Ctrl-C stopped


def test_a_conversation_between_speakers_ends_with_the_input(monkeypatch, writer):
    recipe = dataclasses.replace(writer.model.recipe, corpus="chitchat")
    other = writing.Writer(
        dataclasses.replace(writer.model, task=runs.task_of(recipe, writer.model.task.run_dir)),
        SETTINGS,
    )
    prompts = talk(monkeypatch, other, ["Hi!", "So", EOFError()])
    assert prompts == ["A: Hi!\nB:", "A: Hi!\nB: Well...\nA: So\nB:"]


def test_a_long_conversation_forgets_its_oldest_turns(monkeypatch, writer):
    long = "x" * 150
    prompts = talk(monkeypatch, writer, [long, long, EOFError()])
    assert [len(prompt) for prompt in prompts] == [150, 150]
