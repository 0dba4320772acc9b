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
from typing import Any, ClassVar

from llmjax.data.cleaning import contents
from llmjax.data.cleaning.document import Document, Rejected
from llmjax.data.cleaning.rules import require_ranges

_NO_WORD = re.compile(r"[\W_]+")


@dataclasses.dataclass(frozen=True)
class Urls:
    """Rejects documents by their `url`; those without one pass.

    A list is given inline, in files, or both. Files have an entry per line; empty lines and those
    that begin with # are skipped. Case is ignored.

    Attributes:
        domains: refused with all of their subdomains.
        domain_files: files of these.
        urls: refused, with http or https, with or without "www.".
        url_files: files of these.
        words: refused as separate words in an address.
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
            return Rejected(document, "refused domain")
        if _bare(url) in lists.urls:
            return Rejected(document, "refused address")
        words = set(_NO_WORD.split(url))
        if not lists.words.isdisjoint(words):
            return Rejected(document, "refused word in the address")
        if lists.subwords is not None and lists.subwords.search(_NO_WORD.sub("", url)):
            return Rejected(document, "refused part of the address")
        weak = len(lists.weak_words & words)
        if weak >= self.min_weak_words:
            return Rejected(document, "suspicious words in the address", weak)
        return document

    def plain(self) -> dict[str, Any]:
        """The settings as plain values, with digests instead of files."""
        fields = dataclasses.asdict(self)
        for name in fields:
            if name.endswith("_files"):
                fields[name] = [contents.digest(path) for path in fields[name]]
        return fields


@dataclasses.dataclass(frozen=True)
class _Lists:
    domains: frozenset[str]
    urls: frozenset[str]
    words: frozenset[str]
    subwords: re.Pattern[str] | None
    weak_words: frozenset[str]


@functools.lru_cache(maxsize=4)
def load(step: Urls) -> _Lists:
    """Loads the inline lists and those in files, which are read once.

    Raises:
        ValueError: a file cannot be read.
    """
    subwords = {_NO_WORD.sub("", one) for one in _entries(step.subwords, step.subword_files)} - {""}
    return _Lists(
        frozenset(one.strip(".") for one in _entries(step.domains, step.domain_files)),
        frozenset(map(_bare, _entries(step.urls, step.url_files))),
        frozenset(_entries(step.words, step.word_files)),
        re.compile("|".join(map(re.escape, sorted(subwords)))) if subwords else None,
        frozenset(_entries(step.weak_words, step.weak_word_files)),
    )


def _entries(given: tuple[str, ...], files: tuple[str, ...]) -> set[str]:
    entries = set(given)
    for name in files:
        try:
            lines = pathlib.Path(name).read_text("utf-8").splitlines()
        except (OSError, ValueError) as error:
            raise ValueError(f"urls: the list {name} cannot be read: {error}") from error
        entries.update(line for line in lines if not line.startswith("#"))
    return {entry.strip().lower() for entry in entries} - {""}


def _host(url: str) -> str:
    """The host of an address, or "" if it has none."""
    try:
        return urllib.parse.urlsplit(url if "//" in url else f"//{url}").hostname or ""
    except ValueError:
        return ""


def _parents(host: str) -> list[str]:
    """A host and its parent domains: a.b.org, b.org, org."""
    labels = host.strip(".").split(".")
    return [".".join(labels[i:]) for i in range(len(labels))]


def _bare(url: str) -> str:
    """An address without what does not identify the page: scheme, "www.", last slash, fragment."""
    page = url.partition("#")[0]
    return (page.partition("://")[2] or page).removeprefix("www.").rstrip("/")
