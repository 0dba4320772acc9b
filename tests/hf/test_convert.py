"""The converter: what it writes is what it read, and bad input is one line and status 2."""

import json

import jax
import ml_dtypes
import pytest

from llmjax import hf, models
from llmjax.hf import files
from tools import convert


def test_to_bfloat16_in_shards(checkpoint, tmp_path, capsys, assert_bitwise):
    (checkpoint / "tokenizer.json").write_text("{}")
    target = tmp_path / "target"
    convert.main(
        [str(checkpoint), str(target), "--dtype=bfloat16", "--shard_gb=0.000002", "--check"]
    )
    said = capsys.readouterr().out
    assert "llama: 6,736 parameters, bfloat16" in said
    assert "with tokenizer.json" in said
    assert "checked" in said
    (config, params), (other, converted) = hf.load(checkpoint), hf.load(target)
    assert config == other
    expected = jax.tree.map(lambda leaf: leaf.astype(ml_dtypes.bfloat16), params)
    assert_bitwise(converted, expected)
    assert len(list(target.glob("*.safetensors"))) > 2


def test_precision_stays(checkpoint, tmp_path, assert_bitwise):
    convert.main([str(checkpoint), str(tmp_path / "target")])
    again = files.open_directory(tmp_path / "target")
    assert_bitwise(dict(again), dict(files.open_directory(checkpoint)))


def test_labels_and_special_tokens_stay(llama, draw, tmp_path):
    """In the order of their numbers: as texts, 10 comes before 2."""
    config = models.with_head(llama, "classification", labels=12)
    names = tuple(f"topic {i}" for i in range(12))
    params = draw(models.spec(config))
    hf.save(tmp_path / "source", config, params, labels=names, extra={"pad_token_id": 3})
    convert.main([str(tmp_path / "source"), str(tmp_path / "target")])
    before, after = (
        json.loads((tmp_path / name / "config.json").read_text()) for name in ("source", "target")
    )
    assert after == before
    assert list(after["id2label"].values()) != list(names)  # the file is sorted by text
    assert all(after["id2label"][str(i)] == name for i, name in enumerate(names))


def test_the_check_finds_a_changed_byte(checkpoint, tmp_path, monkeypatch, capsys):
    save = hf.save

    def damage(target, *arguments, **options):
        save(target, *arguments, **options)
        path = target / files.SINGLE_FILE
        path.write_bytes(path.read_bytes()[:-1] + b"\x55")

    monkeypatch.setattr(hf, "save", damage)
    with pytest.raises(SystemExit) as end:
        convert.main([str(checkpoint), str(tmp_path / "target"), "--check"])
    assert end.value.code == 2
    assert "differs from what was written" in capsys.readouterr().err


@pytest.mark.parametrize("damage", ["no source", "target", "tensors", "pickle"])
def test_bad_input_is_one_line(damage, checkpoint, tmp_path, capsys):
    source, target = checkpoint, tmp_path / "target"
    weights = checkpoint / files.SINGLE_FILE
    match damage:
        case "no source":
            source, message = tmp_path / "none", "none is not a directory"
        case "target":
            target, message = checkpoint, "has a config.json already"
        case "tensors":
            weights.write_bytes(weights.read_bytes().replace(b"layers.1", b"layers.9"))
            message = "missing: model.layers.1"
        case "pickle":
            weights.rename(checkpoint / "pytorch_model.bin")
            message = "save_pretrained"
    with pytest.raises(SystemExit) as end:
        convert.main([str(source), str(target)])
    assert end.value.code == 2
    said = capsys.readouterr().err
    assert message in said
    assert said.count("\n") == 1
    assert not (tmp_path / "target").exists()


@pytest.mark.parametrize(
    ("option", "message"), [("--shard_gb=0", "positive"), ("--dtype=int8", "float32")]
)
def test_bad_options(option, message, checkpoint, tmp_path, capsys):
    with pytest.raises(SystemExit) as end:
        convert.main([str(checkpoint), str(tmp_path / "target"), option])
    assert end.value.code == 2
    assert message in capsys.readouterr().err


def test_help_says_how(capsys):
    with pytest.raises(SystemExit) as end:
        convert.main(["--help"])
    assert end.value.code == 0
    assert "SOURCE TARGET" in capsys.readouterr().out


def test_an_older_checkpoint_with_extras(checkpoint, tmp_path):
    """Metadata of other tools in config.json is no obstacle."""
    path = checkpoint / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"transformers_version": "4.0.0"}))
    convert.main([str(checkpoint), str(tmp_path / "target"), "--check"])
