"""Whatever a file or a text is made of, readers and steps answer with documents or rejections."""

import dataclasses
import functools
import gzip
import io
import pathlib
import random
from collections.abc import Sequence

import hypothesis
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zstandard
from hypothesis import strategies

from llmjax.data import config, documents
from llmjax.data.cleaning import quality_model
from llmjax.data.cleaning.config import CleaningConfig
from llmjax.data.cleaning.document import Document, Rejected

pytest.importorskip("datatrove")
pytest.importorskip("warcio")

PAGE = b"<html><head><title>t</title></head><body><p>One \xc3\xa9 <b>two</b>.</p></body></html>"
LINES = (
    b'{"text": "one \\u00e9", "url": "http://a/b"}\n{"text": "two", "n": [1, 2]}\n\n{"text": ""}\n'
)
RESPONSE = b"HTTP/1.1 200 OK\r\nContent-Type: text/html; charset=utf-8\r\n\r\n" + PAGE
RECORD = (
    b"WARC/1.0\r\nWARC-Type: response\r\nWARC-Target-URI: http://a/\r\n"
    b"WARC-Date: 2024-01-01T00:00:00Z\r\nWARC-Record-ID: <urn:uuid:1>\r\n"
    b"Content-Type: application/http; msgtype=response\r\n"
    b"Content-Length: %d\r\n\r\n%s\r\n\r\n" % (len(RESPONSE), RESPONSE)
)
JUNK = [b"", b"\0", b"\xff\xfe", b"\r\n", b'"', b"{", b"<", b"\xed\xa0\x80", b"9" * 40, b"\n" * 99]


@functools.cache
def table() -> bytes:
    stream = io.BytesIO()
    columns = {"text": ["one", "two é", None] * 9, "n": list(range(27))}
    pq.write_table(pa.table(columns), stream, row_group_size=5)
    return stream.getvalue()


def whole_files() -> dict[str, bytes]:
    plain = {
        "a.txt": b"one\n\ntwo \xc3\xa9\n",
        "a.jsonl": LINES,
        "a.html": PAGE,
        "a.warc": RECORD * 2,
    }
    packed = {f"{name}.gz": gzip.compress(text, mtime=0) for name, text in plain.items()}
    frames = {f"{name}.zst": zstandard.compress(text) for name, text in plain.items()}
    return {**plain, **packed, **frames, "a.parquet": table()}


def spoil(data: bytes, draw: random.Random) -> bytes:
    """The data with a few bytes changed, stretches moved, doubled, left out or put in."""
    held = bytearray(data)
    for _ in range(draw.randint(0, 4)):
        at, size = draw.randint(0, len(held)), draw.randint(0, 12)
        piece = bytes(held[at : at + size])
        act = draw.randrange(5)
        if act == 0 and piece:
            held[at] = draw.randrange(256)
        elif act == 1:
            del held[at : at + size]
        elif act == 2:
            held[at:at] = piece * draw.choice([1, 2, 1000])
        elif act == 3:
            held[at:at] = draw.choice(JUNK)
        else:
            del held[at:]
    return bytes(held)


def check_reader(folder: pathlib.Path, seed: int) -> None:
    draw = random.Random(seed)
    name, data = draw.choice(sorted(whole_files().items()))
    path = folder / name
    path.write_bytes(spoil(data, draw))
    split = draw.choice(["file", "line", "paragraph"])
    source = config.Source("s", str(path), split=split)  # type: ignore[arg-type]
    (file,) = documents.find_files(source)
    for part in documents.split(file, source, draw.choice([1 << 20, 50])):
        for item in documents.read(part, source, metadata=True):
            if isinstance(item, Document):
                assert item.text.strip()
                assert item.text.encode()
            else:
                assert item.count > 0
                assert item.reason


TAGS = [
    "<div>", "</div>", "<p>", "<table><tr><td>", "<script>", "</", "<!--", "-->", "<![CDATA[", "&",
    "&#x110000;", "&amp;" * 9, "<a href='", "<p " + "a=b " * 50, "<html><body>", "<!DOCTYPE html>",
]  # fmt: skip
PIECES = [
    *TAGS, "\0", "\u200b", "\u202e", "\ufeff", "\U0010ffff", "é", "é", "日本語", "نص", "😀" * 9,
    "\x1b[0m", "a" * 300, "1" * 300, "(" * 99, "\\" * 50, "a@" * 50, "http://" * 20, "-" * 99,
    ". " * 50, "\n" * 50, "\r", "\t" * 40, "DE89 3704 0044 0532 0130 00", "+49 30 1234567",
    "4111 1111 1111 1111",
    "1.1.1.1", "::" * 30, "the and of ", "Lorem ipsum {", "javascript", "…", "• ",
    "\u00c3\u00a9\u00e2\u20ac\u2122",
    "\u00c3\u0192\u00c2\u00a9" * 9,
]  # fmt: skip


def hostile(draw: random.Random) -> str:
    """Pieces that have tripped parsers, some of them many times over, and anything else."""
    pieces = []
    for _ in range(draw.randint(1, 12)):
        other = chr(draw.choice([draw.randrange(0xD800), draw.randrange(0xE000, 0x110000)]))
        pieces.append(draw.choice([*PIECES, other]) * draw.choice([1, 1, 2, 30]))
    return "".join(pieces)


@pytest.fixture(scope="module")
def steps(tmp_path_factory: pytest.TempPathFactory) -> CleaningConfig:
    """All steps' settings; those of the learned model with one that has seen two texts."""
    path = str(tmp_path_factory.mktemp("model") / "model.safetensors")
    quality_model.train(["A good text."], ["{bad}"], features=1 << 10).save(path)
    return CleaningConfig(quality_model=quality_model.QualityModel(path))


def check_steps(settings: CleaningConfig, seed: int) -> None:
    draw = random.Random(seed)
    text = hostile(draw)
    if not text.strip():
        return
    known = {"url": hostile(draw)[:200], "format": draw.choice(["html", "text"]), "language": "en"}
    document = Document(text, "a:1", "s", known)
    for field in dataclasses.fields(settings):
        step = getattr(settings, field.name)
        if not callable(step):
            continue
        try:
            result = step(document)
        except Exception as error:
            raise AssertionError(f"{field.name} on {text!r}, {known}") from error
        if isinstance(result, Rejected):
            assert result.reason
        else:
            result.text.encode()


SEEDS = strategies.integers(0, 1 << 40)
RELAXED = hypothesis.settings(
    deadline=None, suppress_health_check=list(hypothesis.HealthCheck), derandomize=True
)


@hypothesis.settings(RELAXED, max_examples=70)
@hypothesis.given(seeds=strategies.lists(SEEDS, min_size=3, max_size=3))
def test_readers(seeds: Sequence[int], tmp_path_factory: pytest.TempPathFactory) -> None:
    folder = tmp_path_factory.mktemp("hostile")
    for seed in seeds:
        check_reader(folder, seed)


@hypothesis.settings(RELAXED, max_examples=12)
@hypothesis.given(seed=SEEDS)
def test_steps(seed: int, steps: CleaningConfig) -> None:
    check_steps(steps, seed)


@pytest.mark.slow
def test_a_hundred_thousand_inputs(tmp_path: pathlib.Path, steps: CleaningConfig) -> None:
    for seed in range(80_000):
        check_reader(tmp_path, seed)
    for seed in range(2_000):  # each through a dozen steps
        check_steps(steps, seed)
