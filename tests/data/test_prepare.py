"""Preparing is idempotent, survives being killed, and accounts for every document."""

import concurrent.futures
import dataclasses
import json
import os
import pathlib
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence

import numpy as np
import pytest
from array_record.python import array_record_module

from llmjax import data
from llmjax.data import shards

ROOT = pathlib.Path(__file__).parents[2]
TEXTS = [f"document {i} of the sea\n" * (1 + i % 4) for i in range(200)]
BYTES = data.TokenizerConfig(kind="bytes")
Jsonl = Callable[[Sequence[str]], str]


def settings(path: str, **changes: object) -> data.DataConfig:
    base = data.DataConfig((data.Source("s", path),), BYTES, validation_share=0.1)
    return dataclasses.replace(base, **changes)  # type: ignore[arg-type]


def stored(directory: pathlib.Path, split: shards.SplitName) -> list[str]:
    """The texts of a split, read without the loader."""
    tokenizer, manifest = data.load_tokenizer(directory), data.load_manifest(directory)
    texts = []
    for shard in manifest.split(split).shards:
        reader = array_record_module.ArrayRecordReader(str(directory / shard.file))
        for record in reader.read_all():
            tokens = np.frombuffer(record, manifest.dtype)
            assert (tokens[0], tokens[-1]) == (tokenizer.bos_id, tokenizer.eos_id)
            texts.append(tokenizer.decode(tokens[1:-1]))
        reader.close()
    return texts


def snapshot(directory: pathlib.Path) -> dict[str, tuple[int, bytes]]:
    return {
        str(path.relative_to(directory)): (path.stat().st_mtime_ns, path.read_bytes())
        for path in directory.rglob("*")
        if path.is_file()
    }


@pytest.mark.parametrize(
    "tokenizer", [BYTES, data.TokenizerConfig(vocab_size=300)], ids=["bytes", "sentencepiece"]
)
def test_every_document_is_stored_once(
    tokenizer: data.TokenizerConfig, jsonl: Jsonl, tmp_path: pathlib.Path
) -> None:
    wanted = settings(jsonl(TEXTS), tokenizer=tokenizer, shard_tokens=500)
    manifest = data.prepare(wanted, tmp_path / "data")
    train, validation = (stored(tmp_path / "data", split) for split in shards.SPLITS)
    assert sorted(train + validation) == sorted(TEXTS)
    assert len(manifest.split("train").shards) > 3
    for name, texts in (("train", train), ("validation", validation)):
        split = manifest.split(name)  # type: ignore[arg-type]
        assert split.documents == len(texts)
        assert split.bytes == sum(len(text.encode()) for text in texts)
        assert split.tokens == sum(shard.tokens for shard in split.shards)
    assert data.load_manifest(tmp_path / "data") == manifest
    data.verify(tmp_path / "data")


def test_the_split_depends_on_nothing_but_the_text(jsonl: Jsonl, tmp_path: pathlib.Path) -> None:
    shuffled = random.Random(1).sample(TEXTS, len(TEXTS))
    held_out = []
    for i, texts in enumerate([TEXTS, shuffled, TEXTS[::2], TEXTS + TEXTS]):
        data.prepare(settings(jsonl(texts)), tmp_path / str(i))
        train = set(stored(tmp_path / str(i), "train"))
        validation = set(stored(tmp_path / str(i), "validation"))
        assert not train & validation
        held_out.append(validation)
    assert held_out[0] == held_out[1] == held_out[3]
    assert held_out[2] == held_out[0] & set(TEXTS[::2])
    # A share p of n documents, within four standard deviations.
    assert abs(len(held_out[0]) - 0.1 * 200) < 4 * (0.1 * 0.9 * 200) ** 0.5


def test_preparing_again_changes_nothing(jsonl: Jsonl, tmp_path: pathlib.Path) -> None:
    path = jsonl(TEXTS)
    first = data.prepare(settings(path), tmp_path / "data")
    before = snapshot(tmp_path / "data")
    assert data.prepare(settings(path, directory="elsewhere"), tmp_path / "data") == first
    after = snapshot(tmp_path / "data")
    assert {k: v for k, v in after.items() if k != ".lock"} == {
        k: v for k, v in before.items() if k != ".lock"
    }


def test_other_settings_or_inputs_are_refused(jsonl: Jsonl, tmp_path: pathlib.Path) -> None:
    path, directory = jsonl(TEXTS), tmp_path / "data"
    first = data.prepare(settings(path), directory)
    with pytest.raises(ValueError, match=r"validation_share: 0.1 there, 0.5 now"):
        data.prepare(settings(path, validation_share=0.5), directory)
    jsonl(TEXTS[:150])
    with pytest.raises(ValueError, match="input files have changed"):
        data.prepare(settings(path), directory)
    assert data.load_manifest(directory) == first
    assert data.prepare(settings(path), directory, overwrite=True) != first
    documents = [data.load_manifest(directory).split(split).documents for split in shards.SPLITS]
    assert sum(documents) == 150


def test_new_weights_need_no_new_shards(jsonl: Jsonl, tmp_path: pathlib.Path) -> None:
    path, directory = jsonl(TEXTS), tmp_path / "data"
    data.prepare(settings(path), directory)
    before = (directory / "shards").stat().st_ctime_ns
    data.prepare(settings(path, sources=(data.Source("s", path, weight=3.0),)), directory)
    assert data.load_manifest(directory).sources[0].weight == 3.0
    assert (directory / "shards").stat().st_ctime_ns == before


def test_preparation_is_deterministic(jsonl: Jsonl, tmp_path: pathlib.Path) -> None:
    wanted = settings(jsonl(TEXTS), tokenizer=data.TokenizerConfig(vocab_size=300))
    first, second = (data.prepare(wanted, tmp_path / name) for name in "ab")
    assert first == second


def test_two_at_once_do_the_work_once(jsonl: Jsonl, tmp_path: pathlib.Path) -> None:
    wanted = settings(jsonl(TEXTS), tokenizer=data.TokenizerConfig(vocab_size=300))
    with concurrent.futures.ThreadPoolExecutor(4) as pool:
        runs = [pool.submit(data.prepare, wanted, tmp_path / "data") for _ in range(4)]
        manifests = [run.result() for run in runs]
    assert manifests == [data.load_manifest(tmp_path / "data")] * 4
    data.verify(tmp_path / "data")


def test_a_killed_run_leaves_nothing_that_looks_finished(tmp_path: pathlib.Path) -> None:
    source = tmp_path / "a.jsonl"
    source.write_text("".join(json.dumps({"text": text}) + "\n" for text in TEXTS * 2000))
    directory = tmp_path / "data"
    program = (
        "import sys; from llmjax import data;"
        "source = data.Source('s', sys.argv[1]); tokens = data.TokenizerConfig(kind='bytes');"
        "data.prepare(data.DataConfig((source,), tokens, validation_share=0.1), sys.argv[2])"
    )
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-c", program, str(source), str(directory)]
    child = subprocess.Popen(command, env=environment)
    deadline = time.monotonic() + 60
    while not list(directory.glob("partial/shards/*/*")) and time.monotonic() < deadline:
        time.sleep(0.002)
    child.send_signal(signal.SIGKILL)
    assert child.wait() == -signal.SIGKILL
    with pytest.raises(FileNotFoundError, match="interrupted one continues"):
        data.load_manifest(directory)
    source.write_text("".join(json.dumps({"text": text}) + "\n" for text in TEXTS))
    data.prepare(settings(str(source)), directory)
    data.prepare(settings(str(source)), tmp_path / "fresh")
    assert not (directory / "partial").exists()
    for split in shards.SPLITS:
        assert stored(directory, split) == stored(tmp_path / "fresh", split)


@pytest.mark.parametrize("kind", ["bytes", "sentencepiece"])
def test_a_killed_run_continues_after_its_last_shard(
    kind: str, jsonl: Jsonl, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    one = settings(jsonl(TEXTS), tokenizer=data.TokenizerConfig(kind, 300), shard_tokens=500)  # type: ignore[arg-type]
    wanted = dataclasses.replace(
        one, sources=(*one.sources, dataclasses.replace(one.sources[0], name="t"))
    )
    whole = data.prepare(wanted, tmp_path / "whole")
    finish, finished = shards.Writer._finish_shard, 0

    def finish_or_die(self: shards.Writer) -> None:
        nonlocal finished
        finish(self)
        finished += 1
        if finished % 5 == 0:
            raise KeyboardInterrupt

    monkeypatch.setattr(shards.Writer, "_finish_shard", finish_or_die)
    monkeypatch.setattr(sys.modules["llmjax.data.prepare"], "_LOT_CHARACTERS", 100)
    for _ in range(100):
        try:
            made = data.prepare(wanted, tmp_path / "data")
            break
        except KeyboardInterrupt:
            assert not (tmp_path / "data" / "manifest.json").exists()
    total = sum(len(whole.split(split).shards) for split in shards.SPLITS)
    assert finished == total  # none twice
    assert made == whole
    data.verify(tmp_path / "data")
    assert not (tmp_path / "data" / "partial").exists()


def test_lost_and_damaged_shards(jsonl: Jsonl, tmp_path: pathlib.Path) -> None:
    wanted, directory = settings(jsonl(TEXTS)), tmp_path / "data"
    manifest = data.prepare(wanted, directory)
    shard = directory / manifest.split("train").shards[0].file
    content = shard.read_bytes()
    shard.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    with pytest.raises(ValueError, match="is damaged"):
        data.verify(directory)
    shard.write_bytes(content[:-1])
    with pytest.raises(ValueError, match="Restore it"):
        data.prepare(wanted, directory)
    assert data.prepare(wanted, directory, overwrite=True) == manifest
    shutil.rmtree(directory / "shards")
    with pytest.raises(FileNotFoundError, match="is missing"):
        data.load_manifest(directory)
    assert data.prepare(wanted, directory) == manifest


def test_malformed_lines_are_counted_and_kept_aside(tmp_path: pathlib.Path) -> None:
    path, directory = tmp_path / "a.jsonl", tmp_path / "data"
    lines = [json.dumps({"text": text}) for text in TEXTS]
    lines[10:10] = ['{"text": "torn', '{"text": 1}', '{"text": "torn']
    path.write_text("\n".join(lines))
    manifest = data.prepare(settings(str(path), max_rejected_share=0.02), directory)
    assert manifest.sources[0].rejected == {"not JSON": 2, "field 'text' is not a string": 1}
    assert sum(manifest.split(split).documents for split in shards.SPLITS) == len(TEXTS)
    kept = [json.loads(line) for line in (directory / "rejected.jsonl").read_text().splitlines()]
    assert [record["line"] for record in kept] == [11, 12, 13]
    assert kept[0] == {
        "source": "s", "file": "a.jsonl", "line": 11, "reason": "not JSON", "count": 1,
        "raw": '{"text": "torn',
    }  # fmt: skip


def test_too_many_malformed_lines_fail_by_name(tmp_path: pathlib.Path) -> None:
    good, bad, directory = tmp_path / "good.jsonl", tmp_path / "bad.jsonl", tmp_path / "data"
    good.write_text("".join(json.dumps({"text": text}) + "\n" for text in TEXTS))
    bad.write_text("\n".join(['{"text": "fine"}', "[]", "[]", "{}"] * 25))
    sources = (data.Source("good", str(good)), data.Source("bad", str(bad)))
    # Over all sources a quarter is malformed: the limit is each source's own.
    wanted = data.DataConfig(sources, BYTES, max_rejected_share=0.5)
    with pytest.raises(ValueError, match=r"source 'bad': 75 of 100 .*75\.00%.*=0\.5") as error:
        data.prepare(wanted, directory)
    assert "50 × not a JSON object (first: bad.jsonl, line 2)" in str(error.value)
    assert str(directory / "rejected.jsonl") in str(error.value)
    assert len((directory / "rejected.jsonl").read_text().splitlines()) == 75
    with pytest.raises(FileNotFoundError):
        data.load_manifest(directory)
    data.prepare(dataclasses.replace(wanted, max_rejected_share=0.75), directory)


def test_empty_results_are_refused(jsonl: Jsonl, tmp_path: pathlib.Path) -> None:
    with pytest.raises(ValueError, match="sources is empty"):
        data.prepare(data.DataConfig(), tmp_path / "data")
    path = jsonl(TEXTS[:3])
    with pytest.raises(ValueError, match=r"none of 3 .*raise validation_share .*; 0\.5 would"):
        data.prepare(settings(path, validation_share=1e-9), tmp_path / "data")
    with pytest.raises(ValueError, match="'s' has no training documents"):
        data.prepare(settings(path, validation_share=1 - 1e-9), tmp_path / "data")
    data.prepare(settings(path, validation_share=0.0), tmp_path / "data")


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: data.Source("a/b", "x"), r"Source.name is 'a/b'"),
        (lambda: data.Source("a", ""), r"Source.path of 'a' is empty"),
        (lambda: data.Source("a", "x", weight=-1), r"Source.weight of 'a' is -1"),
        (lambda: data.Source("a", "x", text_field=""), r"Source.text_field of 'a'"),
        (lambda: data.Source("a", "x", split="word"), r"Source.split of 'a' is 'word'"),
        (lambda: data.Source("a", "x", document_bytes=1), r"Source.document_bytes of 'a' is 1"),
        (lambda: data.TokenizerConfig(kind="bpe"), r"TokenizerConfig.kind is 'bpe'"),
        (lambda: data.TokenizerConfig(vocab_size=260), r"TokenizerConfig.vocab_size is 260"),
        (lambda: data.TokenizerConfig(symbols=("",)), r"TokenizerConfig.symbols is"),
        (lambda: data.TokenizerConfig("bytes", symbols=("A",)), r"kind='sentencepiece'"),
        (lambda: data.TokenizerConfig(sample_bytes=0), r"TokenizerConfig.sample_bytes is 0"),
        (lambda: data.DataConfig((data.Source("a", "x"),) * 2), r"DataConfig.sources has a name"),
        (lambda: data.DataConfig(validation_share=1.0), r"DataConfig.validation_share is 1.0"),
        (lambda: data.DataConfig(max_rejected_share=2), r"DataConfig.max_rejected_share is 2"),
        (lambda: data.DataConfig(shard_tokens=0), r"DataConfig.shard_tokens is 0"),
    ],
)
def test_settings_are_checked_at_once(make: Callable[[], object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()
