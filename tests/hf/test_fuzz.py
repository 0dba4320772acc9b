"""Ten thousand damaged checkpoints: each is refused, or reads as an independent reader reads it.

The safetensors library is that reader. Of a change to the data itself no format can know, and one
within the header may make another well-formed file; everything else is a ValueError, and never
another exception, a large allocation or a tensor that was not written.
"""

import collections
import json
import pathlib
import random
import tracemalloc
from collections.abc import Callable

import ml_dtypes
import numpy as np
import pytest
import safetensors

from llmjax import hf, models
from llmjax.hf import files, writing

FILES, INDICES, MODELS = 8500, 1000, 500
MEMORY = 4_000_000

WORDS = (
    *(b'"F32"', b'"BF16"', b'"I8"', b'"F8_E4M3"', b'"shape"', b'"dtype"', b'"data_offsets"'),
    *(b"-1", b"1e3", b"9" * 30, b"NaN", b"null", b"true", b"[]", b"{}", b'"', b"\\ud800", b"\0"),
    *(
        b"__metadata__",
        b"9223372036854775807",
        b"18446744073709551616",
        b"0.0",
        b",",
        b"}",
        b"[" * 2000,
    ),
)
PLACES = (
    *(
        "../a.safetensors",
        "/etc/passwd",
        "..",
        ".",
        "",
        "model-00001-of-00002.safetensors/",
        "a\0b",
    ),
    *("./model-00001-of-00002.safetensors", "model-00009-of-00009.safetensors", "x" * 5000),
    *("\ud800", "folder.safetensors", "config.json", "C:\\a.safetensors", 7, None, [], {}, True),
)


def flip(data: bytes, rng: random.Random) -> bytes:
    """One to four bytes, most of them in the header."""
    damaged = bytearray(data)
    for _ in range(rng.randint(1, 4)):
        limit = rng.choice((8, 8 + int.from_bytes(data[:8], "little"), len(data)))
        damaged[rng.randrange(min(limit, len(data)))] ^= 1 << rng.randrange(8)
    return bytes(damaged)


def cut(data: bytes, rng: random.Random) -> bytes:
    place = rng.randrange(len(data))
    return rng.choice((data[:place], data[place:], data + data[:place], data[:-1], b""))


def length(data: bytes, rng: random.Random) -> bytes:
    own = int.from_bytes(data[:8], "little")
    claimed = rng.choice((0, 1, own - 1, own + 1, own + 8, 10**8, 2**31, 2**63, 2**64 - 1))
    return claimed.to_bytes(8, "little") + data[8:]


def splice(data: bytes, rng: random.Random) -> bytes:
    """A word into the header, whose length is right."""
    size = int.from_bytes(data[:8], "little")
    header = data[8 : 8 + size]
    start = rng.randrange(size)
    end = start + rng.choice((0, 0, 1, 3, 6))
    header = header[:start] + rng.choice(WORDS) + header[end:]
    return len(header).to_bytes(8, "little") + header + data[8 + size :]


def edit(data: bytes, rng: random.Random) -> bytes:
    """A field of the header, which stays JSON."""
    size = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + size])
    names = [name for name in header if name != "__metadata__"]
    name, other = rng.sample(names, 2)
    values = (
        -1,
        0,
        1,
        2**31,
        2**63,
        10**400,
        1.0,
        "1",
        None,
        True,
        [],
        [[1]],
        {"a": 1},
        "F32",
        "I32",
    )
    match rng.randrange(7):
        case 0:
            header[name][rng.choice(("dtype", "shape", "data_offsets"))] = rng.choice(values)
        case 1:
            field = header[name][rng.choice(("shape", "data_offsets"))]
            if field:
                field[rng.randrange(len(field))] = rng.choice(values)
        case 2:
            field = header[name]["data_offsets"]
            field[rng.randrange(2)] += rng.choice((-4, -1, 1, 4, 2**32))
        case 3:
            key = rng.choice(("dtype", "shape", "data_offsets"))
            header[name][key], header[other][key] = header[other][key], header[name][key]
        case 4:
            header[name]["shape"] = rng.choice(
                ([0, 2**40, 2**40], [2**62, 4], [1] * 70, [2**32] * 2)
            )
        case 5:
            del header[name]
        case 6:
            header["__metadata__"] = rng.choice(values)
    text = json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text + data[8 + size :]


def twice(data: bytes, rng: random.Random) -> bytes:
    """A key of the header that stands twice, the second time with the same or another value."""
    size = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + size])
    name = rng.choice(list(header))
    value = rng.choice((header[name], {}, header[list(header)[-1]]))
    text = json.dumps(header)[:-1] + f", {json.dumps(name)}: {json.dumps(value)}}}"
    return len(text).to_bytes(8, "little") + text.encode() + data[8 + size :]


MUTATIONS = (flip, flip, cut, length, splice, splice, edit, edit, twice)


def judged(data: bytes) -> dict[str, tuple]:
    """Name → dtype, shape and bytes, by the safetensors library."""
    return {
        name: (tensor["dtype"], tuple(tensor["shape"]), bytes(tensor["data"]))
        for name, tensor in safetensors.deserialize(data)
    }


def ours(path: pathlib.Path) -> dict[str, tuple]:
    names = {dtype: name for name, dtype in files.DTYPES.items()}
    tensors = files.open_file(path)
    return {name: (names[v.dtype], v.shape, v.tobytes()) for name, v in tensors.items()}


@pytest.fixture
def bounded():
    """No damage makes Python or numpy hold more than MEMORY at once."""
    tracemalloc.start()
    yield
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < MEMORY


def original() -> bytes:
    header, data = {"__metadata__": {"format": "pt"}}, b""
    for name, value in {
        "a.weight": np.arange(6, dtype=np.float32).reshape(2, 3),
        "b.weight": np.arange(4).astype(ml_dtypes.bfloat16),
        "c": np.arange(3),
        "d": np.array([True, False]),
        "e": np.zeros((0, 3), np.float16),
        "f": np.array(1.5),
    }.items():
        dtype = {dtype: n for n, dtype in files.DTYPES.items()}[value.dtype]
        offsets = [len(data), len(data) + value.nbytes]
        header[name] = {"dtype": dtype, "shape": list(value.shape), "data_offsets": offsets}
        data += value.tobytes()
    text = json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text + data


def test_files(tmp_path, bounded):
    rng, counts = random.Random(0), collections.Counter()
    data, path = original(), tmp_path / "x.safetensors"
    path.write_bytes(data)
    expected = ours(path)
    assert expected == judged(data)
    for _ in range(FILES):
        damaged = rng.choice(MUTATIONS)(data, rng)
        # A file that is mapped is not written to: it is replaced.
        path.unlink()
        path.write_bytes(damaged)
        try:
            found = ours(path)
        except ValueError as error:
            assert str(path) in str(error)
            counts["refused"] += 1
            continue
        assert found == judged(damaged)
        counts["same" if found == expected else "other"] += 1
    assert counts["refused"] > FILES / 2
    assert counts["same"] > 20


def damage_index(index: dict, rng: random.Random) -> str | bytes:
    places = index["weight_map"]
    name, other = rng.sample(list(places), 2)
    match rng.randrange(7):
        case 0 | 1:
            places[name] = rng.choice(PLACES)
        case 2:
            places[name] = places[other]
        case 3:
            places["more"] = places.pop(name)
        case 4:
            del places[name]
        case 5:
            index["weight_map"] = rng.choice(PLACES)
        case 6:
            text = json.dumps(index).encode()
            return rng.choice((text[: rng.randrange(len(text))], text[:-1] + b',"weight_map":{}}'))
    return json.dumps(index)


def test_indices(tmp_path, tensors, assert_bitwise, bounded):
    rng, counts = random.Random(1), collections.Counter()
    lazy = {
        name: writing.LazyTensor(value.shape, value.dtype, value.copy)
        for name, value in tensors.items()
    }
    inside = tmp_path / "inside"
    inside.mkdir()
    writing.commit(inside, writing.stage(inside, lazy, shard_bytes=100))
    assert len(list(inside.glob("model-*"))) == 4
    (tmp_path / "a.safetensors").write_bytes(
        (inside / "model-00001-of-00004.safetensors").read_bytes()
    )
    (inside / "folder.safetensors").mkdir()
    path = inside / files.INDEX_FILE
    text = path.read_text()
    for _ in range(INDICES):
        damaged = damage_index(json.loads(text), rng)
        path.write_bytes(damaged if isinstance(damaged, bytes) else damaged.encode())
        try:
            found = files.open_directory(inside)
        except ValueError as error:
            assert str(inside) in str(error)
            counts["refused"] += 1
            continue
        assert_bitwise(dict(found), tensors)
        counts["same"] += 1
    assert counts["refused"] > INDICES / 2
    assert counts["same"] > 10


def header_only(mutation: Callable) -> Callable:
    """The same, and the data as it was."""

    def mutate(data: bytes, rng: random.Random) -> bytes:
        size = int.from_bytes(data[:8], "little")
        damaged = mutation(data, rng)
        return damaged[: 8 + size] + data[8 + size :] if mutation is flip else damaged

    return mutate


def test_models(checkpoint, assert_bitwise):
    """Names, shapes and dtypes are the model's: what loads has every tensor in its place.

    Swapped places of two tensors of one shape are the only damage that goes unseen.
    """
    rng, counts = random.Random(2), collections.Counter()
    path = checkpoint / files.SINGLE_FILE
    data = path.read_bytes()
    config, expected = hf.load(checkpoint)
    names = set(hf.to_state(models.spec(config), expected))
    for _ in range(MODELS):
        damaged = header_only(rng.choice((flip, cut, length, splice, twice)))(data, rng)
        path.unlink()
        path.write_bytes(damaged)
        try:
            found = hf.load(checkpoint)[1]
        except ValueError as error:
            assert str(checkpoint) in str(error)
            counts["refused"] += 1
            continue
        assert set(judged(damaged)) == names
        assert_bitwise(found, expected)
        counts["same"] += 1
    assert counts["refused"] > MODELS / 2
