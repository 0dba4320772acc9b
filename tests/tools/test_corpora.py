"""Package descriptions become prose, and what is there is not fetched again."""

import json
import pathlib

import pytest

from tools import corpora

LISTING = """Package: hello
Description-md5: 0a1b
Description-en: example package
 The hello program prints a greeting.
 It speaks several languages.
 .
 It can:
  * greet;
  * say the time:
      12:00
 and more.
 .
 Upstream: somewhere.

Package: other
Description-md5: 2c3d
Description-de: anderes
 Nichts.
"""
PROSE = """example package

The hello program prints a greeting. It speaks several languages.

It can:
  * greet;
  * say the time:
      12:00
and more.

Upstream: somewhere."""


def test_descriptions_are_unwrapped() -> None:
    found = list(corpora._descriptions(LISTING, "en"))
    assert found == [{"id": "debian/en/hello", "text": PROSE, "lang": "en"}]


def test_what_is_there_is_read(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    records = [{"id": "1", "text": "a\nb", "lang": "en"}, {"id": "2", "text": "ä", "lang": "de"}]
    monkeypatch.setattr(corpora, "CORPORA", {"small": lambda: records})
    path = corpora.fetch("small", tmp_path)
    assert [json.loads(line) for line in path.read_text("utf-8").splitlines()] == records
    monkeypatch.setattr(corpora, "CORPORA", {})
    assert corpora.fetch("small", tmp_path) == path
    assert list(corpora.read(path, "de")) == records[1:]
    assert list(tmp_path.iterdir()) == [path]


def test_what_is_missing_is_named() -> None:
    with pytest.raises(corpora.UnavailableError, match="no-such-tool is not on this machine"):
        corpora._run("no-such-tool")
    with pytest.raises(corpora.UnavailableError, match="sh -c echo why >&2; exit 1: why"):
        corpora._run("sh", "-c", "echo why >&2; exit 1")
