"""Pages out of HTML and WARC: as the writers of the formats and their standards have them."""

import gzip
import io
import pathlib
import zlib

import pytest

from llmjax.data import config, documents
from llmjax.data.cleaning.document import Document


def read(path: pathlib.Path) -> list[documents.Item]:
    source = config.Source("s", str(path))
    return [item for file in documents.find_files(source) for item in documents.read(file, source)]


@pytest.mark.parametrize(
    ("page", "text"),
    [
        ("<p>naïve 日本</p>".encode(), "<p>naïve 日本</p>"),
        (b"\xef\xbb\xbf<p>x</p>", "<p>x</p>"),
        ("<p>日本</p>".encode("utf-16"), "<p>日本</p>"),
        (b"<meta charset=shift_jis>" + "日本".encode("shift_jis"), "<meta charset=shift_jis>日本"),
        # Browsers take what calls itself Latin 1 for Windows' code page 1252.
        (b'<meta charset="iso-8859-1">\x93hi\x94', '<meta charset="iso-8859-1">“hi”'),
        (b"<meta charset=utf-16>abc", "<meta charset=utf-16>abc"),
        (b"<meta charset=rot13>abc", "<meta charset=rot13>abc"),
    ],
)
def test_a_page_in_its_charset(tmp_path: pathlib.Path, page: bytes, text: str) -> None:
    (tmp_path / "a.html").write_bytes(page)
    (tmp_path / "b.htm.gz").write_bytes(gzip.compress(page))
    first, second = read(tmp_path)
    assert first == Document(text, "a.html:0", "s", {"format": "html"})
    assert isinstance(second, Document)
    assert (second.text, second.id) == (text, "b.htm.gz:0")


@pytest.mark.parametrize(
    ("page", "reason"),
    [
        (b"<p>\xff\xfe</p>", "invalid UTF-8"),
        (b"<meta charset=euc-jp>\xff\xff", "invalid in its declared charset"),
        (b" \n", "empty text"),
        (b"x" * 2000, "longer than 0 MiB"),
    ],
)
def test_a_page_that_is_none(
    tmp_path: pathlib.Path, page: bytes, reason: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(documents, "MAX_LINE_BYTES", 1000)
    (tmp_path / "a.html").write_bytes(page)
    (item,) = read(tmp_path)
    assert isinstance(item, documents.Rejected)
    assert (item.reason, item.raw) == (reason, page[: documents.RAW_BYTES])


def archive(*, packed: bool) -> bytes:
    """A WARC archive of a request, pages and other things, from warcio's writer."""
    pytest.importorskip("warcio")
    from warcio.statusandheaders import StatusAndHeaders
    from warcio.warcwriter import WARCWriter

    stream = io.BytesIO()
    writer = WARCWriter(stream, gzip=packed)
    writer.write_record(writer.create_warcinfo_record("a.warc", {"software": "test"}))

    def response(
        number: int, body: bytes, kind: str, status: str = "200 OK", *headers: tuple
    ) -> None:
        http = StatusAndHeaders(status, [("Content-Type", kind), *headers], protocol="HTTP/1.1")
        writer.write_record(
            writer.create_warc_record(
                f"http://site/{number}",
                "response",
                payload=io.BytesIO(body),
                http_headers=http,
                warc_headers_dict={"WARC-Date": "2024-05-06T07:08:09Z"},
            )
        )

    response(1, b"<p>one</p>", "text/html; charset=utf-8")
    response(2, b"%PDF", "application/pdf")
    response(3, "<p>é</p>".encode("latin-1"), 'TEXT/HTML; charset="ISO-8859-1"')
    response(4, b"<p>gone</p>", "text/html", "404 Not Found")
    squeezed = ("Content-Encoding", "gzip")
    response(5, gzip.compress(b"<p>five</p>"), "text/html", "200 OK", squeezed)
    pieces = b"4\r\n<p>s\r\n6\r\nix</p>\r\n0\r\n\r\n"
    response(6, pieces, "application/xhtml+xml", "200 OK", ("Transfer-Encoding", "chunked"))
    response(7, b"<p>\xff</p>", "text/html")
    return stream.getvalue()


PAGES = {1: "<p>one</p>", 3: "<p>é</p>", 5: "<p>five</p>", 6: "<p>six</p>"}


@pytest.mark.parametrize("suffix", ["", ".gz"])
def test_the_pages_of_an_archive(tmp_path: pathlib.Path, suffix: str) -> None:
    (tmp_path / f"a.warc{suffix}").write_bytes(archive(packed=suffix == ".gz"))
    *pages, damaged = read(tmp_path)
    date = "2024-05-06T07:08:09Z"
    assert pages == [
        Document(
            text,
            f"a.warc{suffix}:{number + 1}",
            "s",
            {"format": "html", "url": f"http://site/{number}", "date": date},
        )
        for number, text in PAGES.items()
    ]
    assert isinstance(damaged, documents.Rejected)
    assert (damaged.reason, damaged.unit, damaged.position) == ("invalid UTF-8", "record", 8)


@pytest.mark.parametrize("suffix", ["", ".gz"])
def test_what_precedes_damage_to_an_archive_is_read(tmp_path: pathlib.Path, suffix: str) -> None:
    whole = archive(packed=suffix == ".gz")
    for size in range(len(whole) // 2, len(whole), 211):
        (tmp_path / f"a.warc{suffix}").write_bytes(whole[:size])
        items = read(tmp_path)
        found = [item.text for item in items if isinstance(item, Document)]
        # A page may be cut off with its archive, where its length is not looked at.
        assert found[:2] == list(PAGES.values())[:2]
        if suffix:
            assert isinstance(items[-1], documents.Rejected)


def test_an_archive_of_one_endless_header(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("warcio")
    for name, data in {
        "a.warc": b"WARC/1.0\r\nX: " + b"y" * (5 << 20),
        "b.warc": b"WARC/1.0\r\n" + b"X: y\r\n" * (1 << 20),
        "c.warc": gzip.compress(archive(packed=False)),
        "d.warc.gz": gzip.compress(archive(packed=True)),
        "e.warc": b"no such thing",
    }.items():
        (tmp_path / name).write_bytes(data)
    assert all(isinstance(item, documents.Rejected) for item in read(tmp_path))
    assert {item.file for item in read(tmp_path) if isinstance(item, documents.Rejected)} == {
        "a.warc", "b.warc", "c.warc", "d.warc.gz", "e.warc",
    }  # fmt: skip


def test_a_page_that_expands_is_cut_short(tmp_path: pathlib.Path, monkeypatch) -> None:
    """A body under gzip within the archive: no more of it is expanded than a page may have."""
    pytest.importorskip("warcio")
    from warcio.statusandheaders import StatusAndHeaders
    from warcio.warcwriter import WARCWriter

    monkeypatch.setattr(documents, "MAX_LINE_BYTES", 1 << 20)
    squeeze = zlib.compressobj(wbits=31)
    body = b"".join(squeeze.compress(b"a" * (1 << 20)) for _ in range(64)) + squeeze.flush()
    with (tmp_path / "a.warc").open("wb") as stream:
        writer = WARCWriter(stream, gzip=False)
        headers = [("Content-Type", "text/html"), ("Content-Encoding", "gzip")]
        http = StatusAndHeaders("200 OK", headers, protocol="HTTP/1.1")
        for payload in (body, gzip.compress(b"<p>next</p>")):
            record = writer.create_warc_record(
                "http://site", "response", payload=io.BytesIO(payload), http_headers=http
            )
            writer.write_record(record)
    bomb, page = read(tmp_path)
    assert isinstance(bomb, documents.Rejected)
    assert bomb.reason == "longer than 1 MiB"
    assert isinstance(page, Document)
    assert page.text == "<p>next</p>"


def test_a_record_that_is_longer_than_it_says_is_told(tmp_path: pathlib.Path, capfd) -> None:
    whole = archive(packed=False)
    place = whole.index(b"<p>one</p>")
    (tmp_path / "a.warc").write_bytes(whole[:place] + b"more" + whole[place:])
    wrong, *items = read(tmp_path)
    assert isinstance(wrong, documents.Rejected)
    assert (wrong.reason, wrong.position) == ("wrong Content-Length", 2)
    assert [i.text for i in items if isinstance(i, Document)] == list(PAGES.values())[1:]
    assert capfd.readouterr().err == ""


def test_a_record_without_a_page_does_not_end_the_archive(tmp_path: pathlib.Path) -> None:
    """Crawlers such as Heritrix begin archives with the answers of name servers."""
    pytest.importorskip("warcio")
    names = (
        b"WARC/1.0\r\nWARC-Type: response\r\nWARC-Target-URI: dns:site\r\n"
        b"WARC-Record-ID: <urn:uuid:1>\r\nWARC-Date: 2024-05-06T07:08:09Z\r\n"
        b"Content-Type: text/dns\r\nContent-Length: 4\r\n\r\nsite\r\n\r\n"
    )
    (tmp_path / "a.warc").write_bytes(names + archive(packed=False))
    assert [i.text for i in read(tmp_path) if isinstance(i, Document)] == list(PAGES.values())
    (tmp_path / "a.warc").write_bytes(names + names.replace(b"Content-Length: 4\r\n", b""))
    (item,) = read(tmp_path)
    assert isinstance(item, documents.Rejected)
    assert (item.reason, item.position) == ("damaged archive", 2)
