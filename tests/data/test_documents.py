"""Every format gives the same documents, and damage is told, located and survived."""

import dataclasses
import gzip
import json
import math
import pathlib
import tracemalloc
import zlib
from collections.abc import Callable

import hypothesis
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zstandard
from hypothesis import strategies

from llmjax.data import config, documents
from llmjax.data.cleaning.document import Document

TEXTS = ["one", "zwei\nZeilen", "三 \u2028 x", "end "]


def read(path: pathlib.Path, **settings: str | int) -> list[str | documents.Rejected]:
    source = config.Source("s", str(path), **settings)  # type: ignore[arg-type]
    return [
        item if isinstance(item, documents.Rejected) else item.text
        for file in documents.find_files(source)
        for item in documents.read(file, source)
    ]


def as_jsonl(texts: list[str]) -> bytes:
    return b"".join(json.dumps({"text": text}).encode() + b"\n" for text in texts)


def write_parquet(path: pathlib.Path, column: pa.Array, name: str = "text") -> pathlib.Path:
    pq.write_table(pa.table({name: column, "other": [0] * len(column)}), path)
    return path


@pytest.mark.parametrize("suffix", ["", ".gz", ".zst"])
def test_jsonl(tmp_path: pathlib.Path, suffix: str) -> None:
    pack = {"": bytes, ".gz": gzip.compress, ".zst": zstandard.compress}[suffix]
    path = tmp_path / f"a.jsonl{suffix}"
    # Two members in one archive, as appending makes them; and no newline at the end.
    path.write_bytes(pack(as_jsonl(TEXTS[:2])) + pack(as_jsonl(TEXTS[2:]).rstrip()))
    assert read(path) == TEXTS


def test_parquet(tmp_path: pathlib.Path) -> None:
    kinds = [
        pa.string(),
        pa.large_string(),
        pa.string_view(),
        pa.dictionary(pa.int8(), pa.string()),
    ]
    for column in (
        *(pa.array(TEXTS).cast(kind) for kind in kinds),
        *(
            pa.array(list(map(str.encode, TEXTS)), kind)
            for kind in (pa.binary(), pa.large_binary())
        ),
    ):
        assert read(write_parquet(tmp_path / "a.parquet", column)) == TEXTS
    assert read(write_parquet(tmp_path / "empty.parquet", pa.array([], pa.int64()))) == []


@pytest.mark.parametrize("size", [1, 5000])
def test_padding_after_an_archive_is_no_damage(tmp_path: pathlib.Path, size: int) -> None:
    data, padding = gzip.compress(as_jsonl(TEXTS).rstrip()), b"\0" * size
    (tmp_path / "a.jsonl.gz").write_bytes(data + padding)
    (tmp_path / "b.jsonl.gz").write_bytes(padding)
    *texts, damaged = read(tmp_path)
    assert texts == TEXTS
    assert isinstance(damaged, documents.Rejected)
    assert damaged.reason == "damaged archive"


def test_what_systems_put_around_lines_is_not_text(tmp_path: pathlib.Path) -> None:
    mark, unix = b"\xef\xbb\xbf", b"one\ntwo\n\nthree"
    for name, split in (("a.txt", "line"), ("b.txt", "paragraph")):
        (tmp_path / name).write_bytes(unix)
        texts = read(tmp_path / name, split=split)
        (tmp_path / name).write_bytes(mark + unix.replace(b"\n", b"\r\n"))
        assert read(tmp_path / name, split=split) == texts
    # As `cat` and `copy` join files; the first mark may even be torn apart.
    line = as_jsonl(["é"])
    (tmp_path / "c.jsonl.gz").write_bytes(
        gzip.compress(mark[:1]) + gzip.compress(mark[1:] + line + mark + line)
    )
    assert read(tmp_path / "c.jsonl.gz") == ["é", "é"]


def test_metadata_is_json(tmp_path: pathlib.Path) -> None:
    """What JSON has no name for becomes null, so that any program can read it."""
    (tmp_path / "a.jsonl").write_text('{"text": "one", "score": NaN, "most": -Infinity}')
    table = {"text": ["one"], "score": [math.nan], "most": [-math.inf], "picture": [b"\xff"]}
    pq.write_table(pa.table(table), tmp_path / "b.parquet")
    source = config.Source("s", str(tmp_path))
    for file in documents.find_files(source):
        (item,) = documents.read(file, source, metadata=True)
        assert isinstance(item, Document)
        json.dumps(item.metadata, allow_nan=False)


@hypothesis.given(
    lines=strategies.lists(strategies.text("ab é日", max_size=30), min_size=1),
    limit=strategies.integers(64, 200),
)
def test_pieces_of_a_file_join_to_the_file(
    lines: list[str], limit: int, tmp_path_factory: pytest.TempPathFactory
) -> None:
    text = "\n".join(lines)
    hypothesis.assume(text.strip())
    path = tmp_path_factory.mktemp("text") / "a.txt"
    path.write_bytes(text.encode())
    pieces = [
        item if isinstance(item, str) else item.raw.decode()
        for item in read(path, document_bytes=limit)
    ]
    assert "".join(pieces) == text
    assert all(len(piece.encode()) <= limit for piece in pieces)


@pytest.mark.parametrize("start", ["\n", " ", "\n \n\n"])
def test_white_space_in_front_is_no_piece_of_its_own(tmp_path: pathlib.Path, start: str) -> None:
    for text in (start + "x" * 200, start + "ab cd " * 40):
        (tmp_path / "a.txt").write_text(text)
        pieces = read(tmp_path / "a.txt", document_bytes=64)
        assert all(isinstance(piece, str) for piece in pieces)
        assert "".join(map(str, pieces)) == text


def test_plain_text_by_line_and_paragraph(tmp_path: pathlib.Path) -> None:
    path = tmp_path / "a.txt"
    path.write_text("\ufeffone\ntwo\n\n \nthree\n\nfour\n")
    assert read(path, split="line") == ["one", "two", "three", "four"]
    assert read(path, split="paragraph") == ["one\ntwo", "three", "four"]
    assert read(path) == ["one\ntwo\n\n \nthree\n\nfour\n"]
    path.write_text("x" * 40 + "\n" + "y" * 40 + "\n")
    assert read(path, split="paragraph", document_bytes=64) == ["x" * 40, "y" * 40]


def test_lines_across_blocks(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a.jsonl"
    path.write_bytes(as_jsonl(TEXTS))
    for block in (1, 2, 7, 1000):
        monkeypatch.setattr(documents, "BLOCK_BYTES", block)
        assert read(path) == TEXTS


MALFORMED = {
    b"{": "not JSON",
    b"[" * 100_000: "not JSON",
    b"[1]": "not a JSON object",
    b'{"txt": "x"}': "no field 'text'",
    b'{"text": 3}': "field 'text' is not a string",
    b'{"text": " \\n"}': "empty text",
    b'{"text": "\xff"}': "invalid UTF-8",
    b'{"text": "\\ud800"}': "unpaired surrogate",
}


def test_malformed_lines_are_located(tmp_path: pathlib.Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_bytes(b"".join(line + b"\n\n" + as_jsonl(["ok"]) for line in MALFORMED))
    items = read(path)
    assert items[1::2] == ["ok"] * len(MALFORMED)
    for i, (line, reason) in enumerate(MALFORMED.items()):
        raw = line[: documents.RAW_BYTES]
        assert items[2 * i] == documents.Rejected("a.jsonl", "line", 3 * i + 1, reason, raw)


def test_a_line_without_end_is_rejected(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(documents, "MAX_LINE_BYTES", 1 << 20)
    path = tmp_path / "a.jsonl"
    path.write_bytes(as_jsonl(["x" * 3_000_000, "ok"]))
    rejected, text = read(path)
    assert isinstance(rejected, documents.Rejected)
    assert (rejected.position, rejected.reason, text) == (1, "longer than 1 MiB", "ok")


def test_half_a_pair_is_not_a_whole_one(tmp_path: pathlib.Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_bytes(rb'{"text": "\ud83d\ude00"}')
    assert read(path) == ["😀"]


@pytest.mark.parametrize(("suffix", "pack"), [(".gz", gzip.compress), (".zst", zstandard.compress)])
@pytest.mark.parametrize("name", ["a.jsonl", "a.txt"])
def test_what_precedes_damage_is_read(
    tmp_path: pathlib.Path, name: str, suffix: str, pack: Callable[[bytes], bytes]
) -> None:
    path = tmp_path / (name + suffix)
    whole = as_jsonl(["first"]) if name == "a.jsonl" else b"first\n"
    last = pack(as_jsonl([str(i) for i in range(5000)]))
    for end in (last[: len(last) // 2], last[:20] + b"garbage" + last[27:]):
        path.write_bytes(pack(whole) + end)
        *items, damage = read(path, split="line")
        assert items[0] == "first"
        assert isinstance(damage, documents.Rejected)
        assert (damage.unit, damage.reason) == ("byte", "damaged archive")
        assert damage.position >= len(whole)


def test_malformed_rows(tmp_path: pathlib.Path) -> None:
    column = pa.array([b"ok", None, b"\xff", b" "], pa.binary())
    text, *rejected = read(write_parquet(tmp_path / "a.parquet", column))
    assert text == "ok"
    assert [(r.position, r.reason) for r in rejected if isinstance(r, documents.Rejected)] == [
        (2, "no text"),
        (3, "invalid UTF-8"),
        (4, "empty text"),
    ]


def test_unusable_parquet_counts_every_row(tmp_path: pathlib.Path) -> None:
    (missing,) = read(write_parquet(tmp_path / "a.parquet", pa.array(TEXTS), "content"))
    (number,) = read(write_parquet(tmp_path / "b.parquet", pa.array([1, 2])))
    path = write_parquet(tmp_path / "c.parquet", pa.array(TEXTS))
    path.write_bytes(path.read_bytes()[:-4])
    (damaged,) = read(path)
    assert isinstance(missing, documents.Rejected)
    assert isinstance(number, documents.Rejected)
    assert isinstance(damaged, documents.Rejected)
    assert (missing.reason, missing.count) == ("no column 'text'", 4)
    assert (number.reason, number.count) == ("column 'text' is int64, not a string", 2)
    assert damaged.reason == "damaged Parquet file"


def test_finding_files(tmp_path: pathlib.Path) -> None:
    for name in ("b.txt", "a.txt", "deep/er/c.md", "deep/d.jsonl.zst", "notes.pdf"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("x")

    def names(path: pathlib.Path) -> list[str]:
        return [file.name for file in documents.find_files(config.Source("s", str(path)))]

    assert names(tmp_path) == ["a.txt", "b.txt", "deep/d.jsonl.zst", "deep/er/c.md"]
    assert names(tmp_path / "*.txt") == ["a.txt", "b.txt"]
    assert names(tmp_path / "**" / "*.md") == ["deep/er/c.md"]
    assert names(tmp_path / "a.txt") == ["a.txt"]
    for nothing in ("missing.txt", "*.parquet", "missing/*.txt"):
        with pytest.raises(FileNotFoundError, match="'s': nothing to read"):
            names(tmp_path / nothing)
    with pytest.raises(ValueError, match=r"notes\.pdf"):
        names(tmp_path / "notes.pdf")


def test_progress_adds_up_to_the_files_size(tmp_path: pathlib.Path) -> None:
    path = tmp_path / "a.jsonl.gz"
    path.write_bytes(gzip.compress(as_jsonl(TEXTS)))
    source = config.Source("s", str(path))
    seen: list[int] = []
    (file,) = documents.find_files(source)
    assert [item.text for item in documents.read(file, source, seen.append)] == TEXTS
    assert sum(seen) == path.stat().st_size


def found(file: documents.File, source: config.Source) -> list[documents.Item]:
    return list(documents.read(file, source, metadata=True))


@hypothesis.given(
    lines=strategies.lists(strategies.text("ab é日\r", max_size=40), min_size=1),
    size=strategies.integers(1, 60),
    block=strategies.integers(1, 20),
    end=strategies.booleans(),
)
def test_ranges_of_a_file_join_to_the_file(
    lines: list[str], size: int, block: int, end: bool, tmp_path_factory: pytest.TempPathFactory
) -> None:
    path = tmp_path_factory.mktemp("ranges") / "a.txt"
    path.write_bytes(("\n".join(lines) + "\n" * end).encode())
    source = config.Source("s", str(path), split="line")
    (file,) = documents.find_files(source)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(documents, "BLOCK_BYTES", block)
        parts = documents.split(file, source, size)
        pieces = [item for part in parts for item in found(part, source)]
    assert sum(part.size for part in parts) == file.size
    assert [item.text for item in pieces] == [
        line.removesuffix("\r") for line in lines if line.strip()
    ]
    ids = [item.id for item in pieces]
    assert len(set(ids)) == len(ids)
    # They are ordered as their documents are, by file and position.
    places = [(name, int(line)) for name, _, line in (id_.rpartition(":") for id_ in ids)]
    assert places == sorted(places)


def test_ranges_of_rows_join_to_the_table(tmp_path: pathlib.Path) -> None:
    path = tmp_path / "a.parquet"
    dates = pa.array([None, *range(1, 40)], pa.timestamp("s"))
    columns = {"url": [f"u{i}" for i in range(40)], "text": [f"text {i}" for i in range(40)]}
    table = pa.table({**columns, "date": dates, "vector": [[0.0]] * 40, "raw": [b"x"] * 40})
    pq.write_table(table, path, row_group_size=7)
    source = config.Source("s", str(path))
    (file,) = documents.find_files(source)
    whole = found(file, source)
    assert whole[0] == Document("text 0", "a.parquet:1", "s", {"url": "u0"})
    assert whole[39] == Document(
        "text 39", "a.parquet:40", "s", {"url": "u39", "date": "1970-01-01 00:00:39"}
    )
    for size in (1, 1000, 1 << 20):
        parts = documents.split(file, source, size)
        assert sum(part.size for part in parts) == file.size
        items = [item for part in parts for item in found(part, source)]
        # Rows are counted in the whole file, whatever range they are read in.
        assert [(i.text, i.id.rpartition(":")[2], i.metadata) for i in items] == [
            (i.text, i.id.rpartition(":")[2], i.metadata) for i in whole
        ]
        assert len({item.id for item in items}) == 40
    assert len(documents.split(file, source, 1)) == 6


def test_records_keep_what_they_have_beside_the_text(tmp_path: pathlib.Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text('{"url": "u", "text": "x", "tags": [1]}\n{"text": "y", "url": "\\ud800"}\n')
    source = config.Source("s", str(path))
    first, second = found(documents.find_files(source)[0], source)
    assert first == Document("x", "a.jsonl:1", "s", {"url": "u", "tags": [1]})
    assert isinstance(second, documents.Rejected)
    assert second.reason == "unpaired surrogate"


def frame(size: int) -> bytes:
    """A frame of zstd that expands every four bytes to 128 KiB, beyond what a compressor does."""
    header = b"\x28\xb5\x2f\xfd" + b"\x00" + b"\x58"  # no size, no checksum; a window of 2 MiB
    last, kind = 1, 1 << 1
    blocks = [((1 << 17) << 3 | kind).to_bytes(3, "little") + b"a" for _ in range(size >> 17)]
    return header + b"".join(blocks) + (last | kind | 1 << 3).to_bytes(3, "little") + b"\n"


def deflated(size: int) -> bytes:
    squeeze = zlib.compressobj(9, wbits=31)
    step = b"a" * (1 << 20)
    return b"".join(squeeze.compress(step) for _ in range(size >> 20)) + squeeze.flush()


@pytest.mark.parametrize(("suffix", "pack"), [(".gz", deflated), (".zst", frame)])
@pytest.mark.parametrize("name", ["a.jsonl", "a.txt", "a.html"])
def test_a_bomb_is_put_aside_in_little_memory(
    tmp_path: pathlib.Path,
    name: str,
    suffix: str,
    pack: Callable[[int], bytes],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(documents, "MAX_LINE_BYTES", 1 << 20)
    monkeypatch.setattr(documents, "FREE_EXPANSION_BYTES", 1 << 23)
    path = tmp_path / (name + suffix)
    path.write_bytes(pack(1 << 26))
    tracemalloc.start()
    try:
        items = read(path)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    last = items[-1]
    assert isinstance(last, documents.Rejected)
    # A page is read no further than it may go, if it comes that far.
    too_long = {"longer than 1 MiB"} if name == "a.html" else set()
    assert last.reason in {"decompression bomb"} | too_long
    assert peak < 48 << 20
    # A file of our own, which says the same over and over, is none.
    source = config.Source("s", str(path))
    trusted = dataclasses.replace(documents.find_files(source)[0], max_expansion=math.inf)
    assert "bomb" not in str(list(documents.read(trusted, source))[-1])


def test_links_to_folders_are_followed_once(tmp_path: pathlib.Path) -> None:
    (tmp_path / "disk" / "web").mkdir(parents=True)
    (tmp_path / "disk" / "web" / "a.txt").write_text("a")
    (tmp_path / "in").mkdir()
    for name in ("first", "second"):
        (tmp_path / "in" / name).symlink_to(tmp_path / "disk")
    (tmp_path / "disk" / "around").symlink_to(tmp_path / "in")
    found = documents.find_files(config.Source("s", str(tmp_path / "in")))
    assert [file.name for file in found] == ["first/web/a.txt"]
