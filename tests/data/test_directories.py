"""A directory of prepared data may hold other files, or be among its own sources."""

import dataclasses
import importlib
import pathlib

import pytest

from llmjax import data
from llmjax.data import hub_tokenizer
from llmjax.data.cleaning.config import CleaningConfig
from llmjax.data.tokenizer import ByteTokenizer
from tests.data import hub_folders
from tests.data.conftest import BYTES, write_jsonl

preparing = importlib.import_module("llmjax.data.prepare")  # `data.prepare` is its function

TEXTS = [f"document {i} of the sea" for i in range(200)]


def settings(path: pathlib.Path, *steps: str) -> data.DataConfig:
    cleaning = CleaningConfig(steps=steps)
    return data.DataConfig(
        (data.Source("s", str(path)),), BYTES, validation_share=0.2, cleaning=cleaning
    )


def count(manifest: data.Manifest) -> int:
    return sum(manifest.split(split).documents for split in data.SPLITS)


@pytest.mark.parametrize("folder", ["shards", "shards/train", "cleaned/s", "rejected/s", "phases"])
def test_files_of_others_stay(folder: str, tmp_path: pathlib.Path) -> None:
    (tmp_path / folder).mkdir(parents=True)
    given = write_jsonl(tmp_path / folder / "mine.jsonl", TEXTS)
    other = tmp_path / "tokenizer.json"  # of a checkpoint, say
    other.write_text("{}")
    data.prepare(settings(given, "exact_duplicates"), tmp_path)
    data.prepare(settings(given, "length"), tmp_path, overwrite=True)
    assert len(given.read_text().splitlines()) == len(TEXTS)
    assert other.read_text() == "{}"
    assert data.load_tokenizer(tmp_path).kind == "bytes"
    assert {path.name for path in (tmp_path / "cleaned" / "s").iterdir()} - {given.name} == {
        "00000.jsonl.zst",
        "00000.json",
    }


@pytest.mark.parametrize("name", ["rejected.jsonl", "partial"])
def test_files_that_would_be_overwritten_are_refused(name: str, tmp_path: pathlib.Path) -> None:
    given = write_jsonl(tmp_path / "texts.jsonl", TEXTS)
    (tmp_path / "out" / name).mkdir(parents=True)
    if name == "rejected.jsonl":
        (tmp_path / "out" / name).rmdir()
        write_jsonl(tmp_path / "out" / name, TEXTS)
    with pytest.raises(ValueError, match=f"{name}.*choose another directory"):
        data.prepare(settings(given), tmp_path / "out")
    assert [path.name for path in (tmp_path / "out").iterdir()] == [name]


@pytest.mark.parametrize("steps", [(), ("length", "exact_duplicates")])
def test_what_is_written_is_never_read_as_text(
    steps: tuple[str, ...], tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_jsonl(tmp_path / "texts.jsonl", [*TEXTS, ""])
    given = dataclasses.replace(settings(tmp_path, *steps), max_rejected_share=0.1)
    with monkeypatch.context() as broken:
        broken.setattr(preparing, "_check_splits", lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            data.prepare(given, tmp_path / "out")
    made = data.prepare(given, tmp_path / "out")
    assert count(made) == len(TEXTS)
    assert data.prepare(given, tmp_path / "out") == made
    (tmp_path / "texts.jsonl").unlink()
    with pytest.raises(FileNotFoundError, match="was written by preparing"):
        data.prepare(given, tmp_path / "out")


def test_text_that_an_earlier_run_cleaned_goes(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    given = write_jsonl(tmp_path / "texts.jsonl", TEXTS)
    with monkeypatch.context() as broken:
        broken.setattr(preparing, "_check_splits", lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            data.prepare(settings(given, "exact_duplicates"), tmp_path / "out")
    assert (tmp_path / "out" / "cleaned" / "counts.json").is_file()
    data.prepare(settings(given), tmp_path / "out")
    left = {path.name for path in (tmp_path / "out").iterdir()}
    assert not left & {"cleaned", "rejected", "phases"}


def test_a_tokenizer_that_was_being_copied_is_copied_again(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = hub_folders.write(
        tmp_path / "hub", hub_folders.with_bos(hub_folders.byte_level()), template="{{ messages }}"
    )
    given = dataclasses.replace(
        settings(write_jsonl(tmp_path / "texts.jsonl", TEXTS)),
        tokenizer=data.TokenizerConfig(kind="hub", path=str(folder)),
    )

    def killed(self: data.Tokenizer, directory: pathlib.Path) -> None:
        for name in ("tokenizer.json", "tokenizer_config.json"):
            (directory / name).write_bytes((folder / name).read_bytes())
        raise KeyboardInterrupt

    with monkeypatch.context() as broken:
        broken.setattr(hub_tokenizer.HubTokenizer, "save", killed)
        with pytest.raises(KeyboardInterrupt):
            data.prepare(given, tmp_path / "out")
    data.prepare(given, tmp_path / "out")
    assert data.load_tokenizer(tmp_path / "out").chat_template == "{{ messages }}"
    assert (tmp_path / "out" / "tokenizer.meta.json").is_file()


class Another(ByteTokenizer):
    """Another tokenizer of the same kind."""

    fingerprint = "another"


def test_what_differs_is_named(tmp_path: pathlib.Path) -> None:
    given = write_jsonl(tmp_path / "texts.jsonl", TEXTS)
    data.prepare(settings(given, "length"), tmp_path / "out")
    with pytest.raises(ValueError, match=r"cleaning: \{.*\} there, None now"):
        data.prepare(settings(given), tmp_path / "out")
    examples = data.ExampleConfig((data.ExampleSource("s", str(given)),))
    data.prepare_examples(examples, tmp_path / "examples", ByteTokenizer())
    tokenizer = Another()
    with pytest.raises(ValueError, match="the tokenizer or the template"):
        data.prepare_examples(examples, tmp_path / "examples", tokenizer)
