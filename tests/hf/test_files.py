"""safetensors files: what we write the safetensors library reads, and the other way; damage."""

import json
import pathlib

import numpy as np
import pytest
import safetensors
import safetensors.numpy

from llmjax.hf import files, writing


def write(directory: pathlib.Path, tensors, **options) -> None:
    lazy = {
        name: writing.LazyTensor(value.shape, value.dtype, lambda value=value: value)
        for name, value in tensors.items()
    }
    directory.mkdir(exist_ok=True)
    writing.commit(directory, writing.stage(directory, lazy, **options))


def pack(header, data: bytes = b"") -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text + data


def entry(dtype="F32", shape=(1,), offsets=(0, 4), **more):
    return {"dtype": dtype, "shape": list(shape), "data_offsets": list(offsets), **more}


@pytest.mark.parametrize("shard_bytes", [10**9, 64, 1])
def test_round_trip(tensors, shard_bytes, tmp_path, assert_bitwise):
    write(tmp_path / "a", tensors, shard_bytes=shard_bytes)
    found = files.open_directory(tmp_path / "a")
    assert_bitwise(dict(found), tensors)
    assert found.nbytes == sum(value.nbytes for value in tensors.values())
    assert all(not value.flags.writeable for value in found.values())
    assert all(value.flags.aligned for value in found.values())
    sizes = [
        sum(value.nbytes for value in files.open_file(path).values())
        for path in (tmp_path / "a").glob("*.safetensors")
    ]
    largest = max(value.nbytes for value in tensors.values())
    assert max(sizes) <= max(shard_bytes, largest)
    assert (len(sizes) > 1) == (tmp_path / "a" / files.INDEX_FILE).exists() == (shard_bytes < 100)


def test_the_library_reads_ours(tensors, tmp_path, assert_bitwise):
    # Its numpy reader knows no bfloat16; it is compared through its raw reader.
    plain = {name: value for name, value in tensors.items() if name != "bf16"}
    write(tmp_path, plain)
    assert_bitwise(safetensors.numpy.load_file(tmp_path / files.SINGLE_FILE), plain)
    with safetensors.safe_open(tmp_path / files.SINGLE_FILE, "np") as file:
        assert file.metadata() == {"format": "pt"}
    write(tmp_path, tensors)
    raw = dict(safetensors.deserialize((tmp_path / files.SINGLE_FILE).read_bytes()))
    assert raw["bf16"]["dtype"] == "BF16"
    assert raw["bf16"]["shape"] == [3, 5]
    assert bytes(raw["bf16"]["data"]) == tensors["bf16"].tobytes()


def test_ours_reads_the_librarys(tensors, tmp_path, assert_bitwise):
    path = tmp_path / files.SINGLE_FILE
    safetensors.numpy.save_file(tensors, path, metadata={"format": "pt"})
    assert_bitwise(dict(files.open_file(path)), tensors)


def test_unaligned_tensors_are_read(tmp_path):
    path = tmp_path / "a.safetensors"
    header = {"a": entry("U8", (1,), (0, 1)), "b": entry("F32", (2,), (1, 9))}
    path.write_bytes(pack(header, b"\7" + np.float32([1, 2]).tobytes()))
    np.testing.assert_array_equal(files.open_file(path)["b"], [1, 2])


BAD_FILES = {
    "empty": (b"", "too few"),
    "no header": (b"\2\0\0\0", "too few"),
    "longer than the file": ((99).to_bytes(8, "little") + b"{}", "claims a header of 99"),
    "longer than is believed": (
        (10**8 + 1).to_bytes(8, "little") + b"{}",
        "claims a header of 100000001",
    ),
    "negative length": (b"\xff" * 8 + b"{}", "claims a header of 18446744073709551615"),
    "a list": (pack([]), "must be a JSON object"),
    "not JSON": (pack(b"{,}"), "not valid JSON"),
    "not UTF-8": (pack(b'{"\xff": 1}'), "not valid JSON"),
    "nested deeply": (pack(b'{"a":' + b"[" * 200_000), "nested too deeply"),
    "no Unicode": (pack(b'{"a\\ud800": {}}'), "surrogates not allowed"),
    "a pickle": (b"\x80\x02}q\x00." + b"x" * 99, "not a safetensors file"),
    "duplicate": (
        pack(b'{"a":' + json.dumps(entry()).encode() + b',"a":{}}', bytes(4)),
        "'a' occurs twice",
    ),
    "duplicate field": (
        pack(b'{"a":{"dtype":"F32","dtype":"F32","shape":[1],"data_offsets":[0,4]}}', bytes(4)),
        "'dtype' occurs twice",
    ),
    "metadata": (pack({"__metadata__": {"a": 1}}), "__metadata__"),
    "trailing bytes": (pack({"a": entry()}, bytes(5)), "last 1 bytes"),
    "cut short": (pack({"a": entry()}, bytes(3)), "'a'.*within the 3 bytes"),
    "hole": (
        pack({"a": entry(), "b": entry(offsets=(5, 9))}, bytes(9)),
        "'b' follows a gap",
    ),
    "overlap": (
        pack({"a": entry(), "b": entry(offsets=(2, 6))}, bytes(6)),
        "'b' overlaps",
    ),
    "twice the same": (pack({"a": entry(), "b": entry()}, bytes(4)), "'b' overlaps"),
    "empty one inside another": (
        pack({"a": entry(), "b": entry(shape=(0,), offsets=(2, 2))}, bytes(4)),
        "'b' overlaps",
    ),
}

BAD_ENTRIES = {
    "no object": (3, "nothing else"),
    "missing key": ({"dtype": "F32", "shape": [1]}, "nothing else"),
    "another key": (entry(more=1), "nothing else"),
    "unknown dtype": (entry("C64"), "dtype C64"),
    "dtype no string": (entry(["F32"]), "dtype"),
    "shape no list": (entry() | {"shape": "1"}, "list of at most"),
    "negative sizes": (entry(shape=(-1, -1)), "non-negative"),
    "fractions": (entry(shape=(1.0,)), "integers"),
    "truth": (entry(shape=(True,)), "integers"),
    "huge": (entry(shape=(10**4000,) * 32), "non-negative"),
    "empty but huge": (entry(shape=(0, 2**62, 2**62), offsets=(0, 0)), "does not fit"),
    "overflow to the right size": (entry(shape=(2**62, 4)), "does not fit"),
    "many axes": (entry(shape=(1,) * 33), "at most 32"),
    "another size": (entry(shape=(2,)), "does not fit its 4 bytes"),
    "backwards": (entry(offsets=(4, 0)), "in order"),
    "beyond": (entry(offsets=(0, 2**64)), "in order"),
    "negative offsets": (entry(offsets=(-4, 0)), "in order"),
    "three offsets": (entry(offsets=(0, 2, 4)), "two integers"),
}


@pytest.mark.parametrize("name", BAD_FILES)
def test_damaged_files_are_named(name, tmp_path):
    data, message = BAD_FILES[name]
    path = tmp_path / "x.safetensors"
    path.write_bytes(data)
    with pytest.raises(ValueError, match=message) as error:
        files.open_file(path)
    assert str(path) in str(error.value)


@pytest.mark.parametrize("name", BAD_ENTRIES)
def test_damaged_entries_are_named(name, tmp_path):
    fields, message = BAD_ENTRIES[name]
    path = tmp_path / "x.safetensors"
    path.write_bytes(pack({"the.weight": fields}, bytes(4)))
    with pytest.raises(ValueError, match=f"'the.weight'.*{message}") as error:
        files.open_file(path)
    assert str(path) in str(error.value)
    assert len(str(error.value)) < 1000


def test_booleans_are_0_or_1(tmp_path):
    path = tmp_path / "x.safetensors"
    path.write_bytes(pack({"a": entry("BOOL", (2,), (0, 2))}, b"\1\2"))
    with pytest.raises(ValueError, match="x.safetensors: tensor 'a'.*0 and 1"):
        files.open_file(path)["a"]


def test_what_is_no_file(tmp_path):
    for path in (tmp_path, tmp_path / "none"):
        with pytest.raises(ValueError, match=r"does not exist, or is not a file"):
            files.open_file(path)


@pytest.mark.parametrize(
    "place", ["../x.safetensors", "/etc/passwd", "..", "", ".", "a\0", 3, None]
)
def test_an_index_stays_in_its_directory(place, tensors, tmp_path):
    inside = tmp_path / "inside"
    write(inside, tensors, shard_bytes=64)
    (tmp_path / "x.safetensors").write_bytes(pack({"f32": entry()}, bytes(4)))
    index = json.loads((inside / files.INDEX_FILE).read_text())
    index["weight_map"]["f32"] = place
    (inside / files.INDEX_FILE).write_text(json.dumps(index))
    with pytest.raises(ValueError, match=r"index.json: tensor 'f32' is said to be in"):
        files.open_directory(inside)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"more": "model-00001-of-00005.safetensors"}, "'more' is not in model-00001-of-00005"),
        ({"f32": "model-00001-of-00005.safetensors"}, "'f32' is not in model-00001-of-00005"),
        ({"f64": None}, "names no tensor of model-00001-of-00005"),
        ({"i8": None}, "'i8' is not listed in model.safetensors.index.json"),
        ({"f32": "model-00009-of-00009.safetensors"}, "which is not a safetensors file of"),
    ],
)
def test_an_index_that_disagrees(change, message, tensors, tmp_path):
    write(tmp_path, tensors, shard_bytes=64)
    assert len(list(tmp_path.glob("*.safetensors"))) == 5
    index = json.loads((tmp_path / files.INDEX_FILE).read_text())
    places = index["weight_map"] | change
    index["weight_map"] = {name: file for name, file in places.items() if file is not None}
    (tmp_path / files.INDEX_FILE).write_text(json.dumps(index))
    with pytest.raises(ValueError, match=message):
        files.open_directory(tmp_path)


def test_pickles_are_not_opened(tmp_path):
    (tmp_path / "pytorch_model.bin").write_bytes(b"cos\nsystem\n(S'touch ran'\ntR.")
    with pytest.raises(ValueError, match=r"pytorch_model.bin and no(?s:.*)save_pretrained"):
        files.open_directory(tmp_path)


def test_a_directory_without_or_with_two_checkpoints(tensors, tmp_path):
    with pytest.raises(ValueError, match="neither model.safetensors nor"):
        files.open_directory(tmp_path)
    with pytest.raises(ValueError, match="is not a directory"):
        files.open_directory(tmp_path / "none")
    write(tmp_path, tensors, shard_bytes=64)
    (tmp_path / files.SINGLE_FILE).write_bytes(pack({}))
    with pytest.raises(ValueError, match="both model.safetensors and"):
        files.open_directory(tmp_path)


def test_writing_again_leaves_nothing_of_the_old(tensors, tmp_path):
    write(tmp_path, tensors, shard_bytes=1)
    (tmp_path / "model-00003-of-00004.safetensors.partial").touch()
    (tmp_path / "README.md").touch()
    write(tmp_path, tensors)
    assert {path.name for path in tmp_path.iterdir()} == {files.SINGLE_FILE, "README.md"}


def test_a_failing_write_leaves_the_old(tensors, tmp_path, assert_bitwise):
    write(tmp_path, tensors)
    before = set(tmp_path.iterdir())

    def fail() -> np.ndarray:
        raise RuntimeError("no device")

    lazy = {
        "a": writing.LazyTensor((1,), np.dtype("f4"), lambda: np.ones(1, np.float32)),
        "b": writing.LazyTensor((1,), np.dtype("f4"), fail),
    }
    with pytest.raises(RuntimeError, match="no device"):
        writing.stage(tmp_path, lazy, shard_bytes=4)
    assert set(tmp_path.iterdir()) == before
    assert_bitwise(dict(files.open_directory(tmp_path)), tensors)


def test_what_cannot_be_written(tmp_path):
    lazy = {"a": writing.LazyTensor((1,), np.dtype("c8"), lambda: np.ones(1, np.complex64))}
    with pytest.raises(ValueError, match="'a' of complex64"):
        writing.stage(tmp_path, lazy)
    with pytest.raises(ValueError, match="shard_bytes=0"):
        writing.stage(tmp_path, {}, shard_bytes=0)
    lazy = {"a": writing.LazyTensor((1,), np.dtype("f4"), lambda: np.ones(2, np.float32))}
    with pytest.raises(ValueError, match="'a' is float32 .2,., not as declared"):
        writing.stage(tmp_path, lazy)
    assert not list(tmp_path.iterdir())
