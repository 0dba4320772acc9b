"""Directories: a bitwise round trip, little memory, and errors that say what to do."""

import dataclasses
import json
import tracemalloc

import jax
import ml_dtypes
import numpy as np
import pytest
import safetensors.numpy

from llmjax import hf, mesh, models, tree
from llmjax import spec as specs
from llmjax.hf import files, state, writing


@pytest.mark.parametrize("shard_bytes", [10**9, 2000])
@pytest.mark.parametrize("dtype", [np.float32, ml_dtypes.bfloat16])
@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_round_trip_is_bitwise(family, dtype, shard_bytes, request, draw, tmp_path, assert_bitwise):
    config = request.getfixturevalue(family)
    params = jax.tree.map(lambda leaf: leaf.astype(dtype), draw(models.spec(config)))
    hf.save(tmp_path / "new" / "model", config, params, shard_bytes=shard_bytes)
    found, again = hf.load(tmp_path / "new" / "model", dropout=models.Dropout())
    assert_bitwise(again, params)
    assert found == config
    shards = list((tmp_path / "new" / "model").glob("*.safetensors"))
    assert (len(shards) > 1) == (shard_bytes == 2000)
    assert not list((tmp_path / "new" / "model").glob("*.partial"))


def test_device_arrays_and_lists_of_layers(llama, draw, tmp_path, assert_bitwise):
    params = draw(models.spec(llama))
    unrolled = dataclasses.replace(llama, scan_layers=False)
    as_list = jax.tree.map(jax.numpy.asarray, params | {"layers": tree.unstack(params["layers"])})
    hf.save(tmp_path / "a", llama, jax.tree.map(jax.numpy.asarray, params))
    hf.save(tmp_path / "b", unrolled, as_list)
    first, second = (files.open_directory(tmp_path / name) for name in "ab")
    assert_bitwise(dict(first), dict(second))
    assert_bitwise(hf.load(tmp_path / "a", scan_layers=False)[1], as_list)


def test_on_a_mesh(llama, draw, tmp_path, assert_bitwise):
    """Born sharded as `init` shards, saved from there, and every device holds its part only."""
    params = draw(models.spec(llama))
    hf.save(tmp_path / "a", llama, params)
    devices = mesh.make_mesh(mesh.MeshConfig(data=2, fsdp=2, tensor=2))
    with jax.set_mesh(devices):
        _, found = hf.load(tmp_path / "a")
        wanted = specs.abstract(models.spec(llama))
        same = jax.tree.map(lambda value, a: value.sharding == a.sharding, found, wanted)
        assert all(jax.tree.leaves(same))
        query = found["layers"]["attention"]["query"]
        assert query.addressable_shards[0].data.size == query.size // 4
        hf.save(tmp_path / "b", llama, found)
    hf.save(tmp_path / "c", llama, found)
    assert_bitwise(found, params)
    for name in "bc":
        again = files.open_directory(tmp_path / name)
        assert_bitwise(dict(again), dict(files.open_directory(tmp_path / "a")))


def test_precision(llama, draw, tmp_path, assert_bitwise):
    params = draw(models.spec(llama))
    rounded = jax.tree.map(lambda leaf: leaf.astype(ml_dtypes.bfloat16), params)
    hf.save(tmp_path / "a", llama, params)
    assert_bitwise(hf.load(tmp_path / "a", dtype="bfloat16")[1], rounded)
    hf.save(tmp_path / "b", llama, params, dtype="bfloat16")
    assert_bitwise(hf.load(tmp_path / "b")[1], rounded)
    stored = [json.loads((tmp_path / n / "config.json").read_text())["torch_dtype"] for n in "ab"]
    assert stored == ["float32", "bfloat16"]
    with pytest.raises(ValueError, match="dtype=int8"):
        hf.load(tmp_path / "a", dtype="int8")


def peak_of(function) -> int:
    """The most bytes that Python and numpy held while it ran, beyond what they held before.

    It runs once before: what is compiled, imported or cached is not counted.
    """
    function()
    tracemalloc.start()
    try:
        function()
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("stacked", [False, True])
def test_memory_is_that_of_a_tensor(stacked, draw, tmp_path):
    config = models.llama(
        vocab_size=256,
        num_layers=16,
        embed_dim=128,
        num_heads=2,
        mlp_dim=1024,
        scan_layers=stacked,
    )
    params = draw(models.spec(config))
    spec = models.spec(config)
    tensor, total = 128 * 1024 * 4, specs.count(spec) * 4
    assert total > 50 * tensor
    options = {"shard_bytes": 10 * tensor, "overwrite": True}
    saved = peak_of(lambda: hf.save(tmp_path, config, params, **options))
    assert saved < 2 * tensor

    # What comes out is let go as soon as it is on the device.
    put, shapes = state.sharded(), []

    def place(stored, param):
        shapes.append(put(stored, param).shape)

    tensors = files.open_directory(tmp_path)
    peak = peak_of(lambda: hf.from_state(spec, tensors, place=place))
    assert len(shapes) == 2 * len(jax.tree.leaves(spec, is_leaf=specs.is_param))
    # A stack of layers is assembled whole; jax lets go of an array when the next one comes.
    assert peak < 2.5 * (16 * tensor if stacked else tensor)


def test_a_checkpoint_is_not_overwritten_by_mistake(checkpoint, llama, draw, assert_bitwise):
    params = jax.tree.map(lambda leaf: 2 * leaf, draw(models.spec(llama)))
    with pytest.raises(ValueError, match="has a config.json already.*overwrite=True"):
        hf.save(checkpoint, llama, params)
    hf.save(checkpoint, llama, params, overwrite=True, shard_bytes=2000)
    assert_bitwise(hf.load(checkpoint)[1], params)
    hf.save(checkpoint, llama, params, overwrite=True)
    assert not list(checkpoint.glob("*-of-*"))
    assert_bitwise(hf.load(checkpoint)[1], params)


def test_a_failing_save_leaves_the_old(checkpoint, llama, draw, monkeypatch, assert_bitwise):
    before = hf.load(checkpoint)[1]

    def fail(*arguments):
        raise OSError("disk full")

    monkeypatch.setattr(writing, "_write_shard", fail)
    with pytest.raises(OSError, match="disk full"):
        hf.save(checkpoint, llama, draw(models.spec(llama)), overwrite=True)
    assert_bitwise(hf.load(checkpoint)[1], before)


def test_an_interrupted_save_is_no_checkpoint(checkpoint, llama, draw, monkeypatch, assert_bitwise):
    params = draw(models.spec(llama))

    def die(*arguments):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(writing, "commit", die)
        with pytest.raises(KeyboardInterrupt):
            hf.save(checkpoint, llama, params, overwrite=True)
    with pytest.raises(ValueError, match="config.json does not exist"):
        hf.load(checkpoint)
    hf.save(checkpoint, llama, params, progress=True)
    assert_bitwise(hf.load(checkpoint, progress=True)[1], params)
    assert not list(checkpoint.glob("*.partial"))


def test_bad_directories(checkpoint, llama, draw, amend, tmp_path):
    params = draw(models.spec(llama))
    (tmp_path / "file").touch()
    with pytest.raises(ValueError, match="file is a file"):
        hf.save(tmp_path / "file", llama, params)
    with pytest.raises(ValueError, match="none is not a directory"):
        hf.load(tmp_path / "none")
    config = checkpoint / "config.json"
    good = config.read_text()
    for text, message in {
        "[]": "must be a JSON object",
        "{": "not valid JSON",
        "{}": "config.json: ",
        " " * 10_000_001: "10000001 bytes",
    }.items():
        config.write_text(text)
        with pytest.raises(ValueError, match=message):
            hf.load(checkpoint)
    config.write_text(good)
    amend(config, {"model_type": "abacus"})
    with pytest.raises(ValueError, match="abacus"):
        hf.load(checkpoint)
    config.unlink()
    with pytest.raises(ValueError, match="config.json does not exist"):
        hf.load(checkpoint)


def test_tensors_of_another_model(checkpoint):
    path = checkpoint / files.SINGLE_FILE
    tensors = safetensors.numpy.load_file(path)
    tensors["model.norm.weight"] = np.ones(16, np.int8)
    tensors["model.layers.0.mlp.up_proj.weight"] = np.ones((3, 16), np.float32)
    tensors["model.layers.7.mlp.up_proj.weight"] = np.ones((32, 16), np.float32)
    del tensors["lm_head.weight"]
    safetensors.numpy.save_file(tensors, path)
    with pytest.raises(ValueError) as error:
        hf.load(checkpoint)
    for line in (
        f"{checkpoint}: the checkpoint does not fit",
        "missing: lm_head.weight (64, 16)",
        "extra: model.layers.7.mlp.up_proj.weight",
        "shape: model.layers.0.mlp.up_proj.weight is (3, 16), but the model needs (32, 16)",
        "dtype: model.norm.weight is int8; quantised weights are not supported",
    ):
        assert line in str(error.value)


def test_a_head_that_is_not_the_embedding_is_not_lost(gpt2, draw, tmp_path):
    """Checkpoints may carry a tied head twice; another one is not dropped in silence."""
    hf.save(tmp_path, gpt2, draw(models.spec(gpt2)))
    path = tmp_path / files.SINGLE_FILE
    tensors = safetensors.numpy.load_file(path)
    tensors["lm_head.weight"] = tensors["transformer.wte.weight"].copy()
    safetensors.numpy.save_file(tensors, path)
    hf.load(tmp_path)
    tensors["lm_head.weight"][-1, 0] += 1
    path.unlink()
    safetensors.numpy.save_file(tensors, path)
    with pytest.raises(ValueError, match="lm_head.weight differs from transformer.wte.weight"):
        hf.load(tmp_path)


def test_more_fields_of_the_configuration(llama, draw, tmp_path):
    more = {"eos_token_id": 2, "hidden_size": 3}
    hf.save(tmp_path, llama, draw(models.spec(llama)), extra=more)
    written = json.loads((tmp_path / "config.json").read_text())
    assert (written["eos_token_id"], written["hidden_size"]) == (2, llama.embed_dim)


def test_the_tokenizer_comes_along(tmp_path):
    source = tmp_path / "source"
    source.mkdir()
    files = ("tokenizer.json", "tokenizer.meta.json", "merges.txt")
    for name in (*files, "weights.bin"):
        (source / name).write_bytes(name.encode())
    assert hf.copy_tokenizer(source, tmp_path / "target") == files
    copied = {path.name: path.read_bytes() for path in (tmp_path / "target").iterdir()}
    assert copied == {name: name.encode() for name in files}
    assert hf.copy_tokenizer(source, source) == files
    assert (source / "merges.txt").read_bytes() == b"merges.txt"
