"""Rejects documents by their web address, with lists.

Penedo et al. 2023, "The RefinedWeb Dataset for Falcon LLM" (arXiv:2306.01116), appendix G.1: lists
of domains, and words in addresses that are strong signals by themselves or weak ones together.
"""

import dataclasses
import functools
import math
import pathlib
import re
import urllib.parse
from collections.abc import Iterable, Sequence
from typing import Any, ClassVar

from llmjax.data.cleaning import contents, shingles
from llmjax.data.cleaning.document import Document, Rejected
from llmjax.data.cleaning.rules import require_ranges


@dataclasses.dataclass(frozen=True)
class Urls:
    """Rejects documents by their `url`; those without one pass.

    A list is given inline, in files, or both. Files have an entry per line; empty lines and those
    that begin with # are skipped. Case, accents, and how an address encodes them are ignored.

    Attributes:
        domains: refused with all of their subdomains.
        domain_files: files of these.
        urls: refused, with http or https, with or without "www.".
        url_files: files of these.
        words: refused as separate words, or phrases, in an address.
        word_files: files of these.
        subwords: refused anywhere in an address, ignoring punctuation.
        subword_files: files of these.
        weak_words: refused if several of them occur in an address.
        weak_word_files: files of these.
        min_weak_words: number of distinct weak words that is refused.
    """

    name: ClassVar[str] = "urls"

    domains: tuple[str, ...] = ()
    domain_files: tuple[str, ...] = ()
    urls: tuple[str, ...] = ()
    url_files: tuple[str, ...] = ()
    words: tuple[str, ...] = ()
    word_files: tuple[str, ...] = ()
    subwords: tuple[str, ...] = ()
    subword_files: tuple[str, ...] = ()
    weak_words: tuple[str, ...] = ()
    weak_word_files: tuple[str, ...] = ()
    min_weak_words: int = 2

    def __post_init__(self) -> None:
        require_ranges(self, min_weak_words=(1, math.inf))

    def __call__(self, document: Document) -> Document | Rejected:
        """The document, or its rejection by a list.

        Raises:
            ValueError: a list's file cannot be read.
        """
        url = str(document.metadata.get("url") or "").lower()
        if not url:
            return document
        lists = load(self)
        if not lists.domains.isdisjoint(_parents(_host(url))):
            return Rejected(document, "blocked domain")
        if _bare(url) in lists.urls:
            return Rejected(document, "blocked address")
        words = _words(url)
        if lists.words.found(words):
            return Rejected(document, "blocked word in the address")
        if lists.subwords is not None and lists.subwords.search("".join(words)):
            return Rejected(document, "blocked part of the address")
        weak = len(lists.weak_words.found(words))
        if weak >= self.min_weak_words:
            return Rejected(document, "several weak words in the address", weak)
        return document

    def plain(self) -> dict[str, Any]:
        """The settings as plain values, with digests instead of files."""
        fields = dataclasses.asdict(self)
        for name in fields:
            if name.endswith("_files"):
                fields[name] = [contents.digest(path) for path in fields[name]]
        return fields


class _Phrases:
    """Words, and phrases of several words."""

    def __init__(self, entries: Iterable[str]) -> None:
        split = [_words(entry) for entry in entries]
        self._known = {" ".join(words) for words in split} - {""}
        self._lengths = {len(words) for words in split if words}

    def found(self, words: Sequence[str]) -> set[str]:
        """Those that occur among words in order."""
        return self._known.intersection(
            " ".join(words[start : start + length])
            for length in self._lengths
            for start in range(len(words) - length + 1)
        )


@dataclasses.dataclass(frozen=True)
class _Lists:
    domains: frozenset[str]
    urls: frozenset[str]
    words: _Phrases
    subwords: re.Pattern[str] | None
    weak_words: _Phrases


@functools.lru_cache(maxsize=4)
def load(step: Urls) -> _Lists:
    """Loads the inline lists and those in files, which are read once.

    Raises:
        ValueError: a file cannot be read.
    """
    subwords = {"".join(_words(one)) for one in _entries(step.subwords, step.subword_files)} - {""}
    return _Lists(
        frozenset(_ascii(one.strip(".")) for one in _entries(step.domains, step.domain_files)),
        frozenset(map(_bare, _entries(step.urls, step.url_files))),
        _Phrases(_entries(step.words, step.word_files)),
        re.compile("|".join(map(re.escape, sorted(subwords)))) if subwords else None,
        _Phrases(_entries(step.weak_words, step.weak_word_files)),
    )


def _entries(given: tuple[str, ...], files: tuple[str, ...]) -> set[str]:
    entries = set(given)
    for name in files:
        try:
            lines = pathlib.Path(name).read_text("utf-8-sig").splitlines()
        except (OSError, ValueError) as error:
            raise ValueError(f"urls: the list {name} cannot be read: {error}") from error
        entries.update(line for line in lines if not line.startswith("#"))
    return {entry.strip().lower() for entry in entries} - {""}


def _words(text: str) -> list[str]:
    """The words in an address or an entry, in normal form."""
    return [shingles.normal(word) for word in shingles.WORD.findall(urllib.parse.unquote(text))]


def _host(url: str) -> str:
    """The host of an address, or "" if it has none."""
    try:
        return _ascii(urllib.parse.urlsplit(url if "//" in url else f"//{url}").hostname or "")
    except ValueError:
        return ""


def _ascii(host: str) -> str:
    """A host as the name service knows it (RFC 3490), if it is valid."""
    try:
        return host.encode("idna").decode()
    except UnicodeError:
        return host


def _parents(host: str) -> list[str]:
    """A host and its parent domains: a.b.org, b.org, org."""
    labels = host.strip(".").split(".")
    return [".".join(labels[i:]) for i in range(len(labels))]


def _bare(url: str) -> str:
    """An address without what does not identify the page: scheme, "www.", last slash, fragment."""
    page = urllib.parse.unquote(url.partition("#")[0])
    host, slash, path = (page.partition("://")[2] or page).partition("/")
    return (_ascii(host.removeprefix("www.")) + slash + path).rstrip("/")
