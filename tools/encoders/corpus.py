"""Debian's package descriptions: pretraining text, and texts labelled with their section.

Splits are by source package, so that near-duplicates from one source stay together. A paragraph
that several sources share is boilerplate: it is removed from labelled texts and kept once in the
pretraining text. Pretraining reads only packages of the training split, labelled or not.
"""

import collections
import dataclasses
import gzip
import lzma
import pathlib
import zlib
from collections.abc import Iterable, Iterator, Sequence
from typing import Literal

import numpy as np

# Sections that describe a subject. Excluded: those that describe packaging (doc, libdevel, debug),
# those whose name appears in the text (python, perl, gnome, kde, fonts), misc, and rare ones.
TOPICS = (
    "admin",
    "database",
    "devel",
    "editors",
    "electronics",
    "games",
    "graphics",
    "interpreters",
    "libs",
    "mail",
    "math",
    "net",
    "science",
    "sound",
    "text",
    "utils",
    "video",
    "web",
    "x11",
)
MIN_WORDS = 12  # of a labelled text without boilerplate
MAX_TOKENS = 512  # kept of a labelled text

Split = Literal["train", "validation", "test"]
SPLITS: tuple[Split, ...] = ("train", "validation", "test")


@dataclasses.dataclass(frozen=True)
class Package:
    """A binary package: its source, its section, and its description, the synopsis first."""

    source: str
    section: str
    paragraphs: tuple[str, ...]

    @property
    def split(self) -> Split:
        """The split by source: 70 % training, 10 % validation, 20 % test."""
        place = zlib.crc32(self.source.encode()) % 10
        return "test" if place < 2 else "validation" if place == 2 else "train"


@dataclasses.dataclass(frozen=True)
class Texts:
    """Pretraining documents, and labelled documents with their sections and splits."""

    unlabelled: list[str]
    labelled: list[str]
    sections: list[str]
    splits: list[Split]


def read(directory: str | pathlib.Path) -> list[Package]:
    """The packages of an apt lists directory: its *_Packages and *_Translation-en files.

    Plain, gzip or xz files.

    Raises:
        ValueError: a kind of file is missing.
    """
    stanzas: dict[str, dict[str, dict[str, str]]] = {}
    for kind in ("Packages", "Translation-en"):
        folder = pathlib.Path(directory)
        files = [
            path for end in ("", ".gz", ".xz") for path in sorted(folder.glob(f"*{kind}{end}"))
        ]
        if not files:
            raise ValueError(
                f"{str(directory)!r} has no file *{kind}, plain, .gz or .xz; tools/"
                "compare_encoders.py --help explains how to fetch them"
            )
        stanzas[kind] = {fields["Package"]: fields for path in files for fields in _stanzas(path)}
    packages = []
    for name, fields in sorted(stanzas["Packages"].items()):
        description = stanzas["Translation-en"].get(name, {}).get("Description-en", "")
        source = fields.get("Source", name).split()[0]
        section = fields.get("Section", "").rpartition("/")[2]
        packages.append(Package(source, section, tuple(_paragraphs(description))))
    return [package for package in packages if package.paragraphs]


def choose(packages: Iterable[Package], topics: Sequence[str] = TOPICS) -> Texts:
    """The texts of packages; each source yields at most one labelled text, its longest."""
    packages = list(packages)
    owners: dict[str, set[str]] = collections.defaultdict(set)
    for package in packages:
        for paragraph in package.paragraphs:
            owners[paragraph].add(package.source)
    unlabelled, seen = [], set()
    longest: dict[str, tuple[str, Package]] = {}
    for package in packages:
        if package.split == "train":
            fresh = [paragraph for paragraph in package.paragraphs if paragraph not in seen]
            seen.update(fresh)
            if fresh:
                unlabelled.append("\n".join(fresh))
        own = "\n".join(p for p in package.paragraphs if len(owners[p]) == 1)
        known = longest.get(package.source, ("", package))[0]
        if package.section in topics and len(own) > len(known):
            longest[package.source] = (own, package)
    kept = [pair for _, pair in sorted(longest.items()) if len(pair[0].split()) >= MIN_WORDS]
    return Texts(
        unlabelled,
        [text for text, _ in kept],
        [package.section for _, package in kept],
        [package.split for _, package in kept],
    )


def prepare(directory: str | pathlib.Path, path: str | pathlib.Path, vocab_size: int) -> str:
    """Reads and tokenizes the corpus, writes the .npz that `Data` reads, and summarizes it.

    The tokenizer is trained on the pretraining text.
    """
    # Reading the result needs no tokenizer.
    from llmjax.data import TokenizerConfig
    from llmjax.data import tokenizer as tokenizers

    texts = choose(read(directory))
    settings = TokenizerConfig(vocab_size=vocab_size)
    tokenizer = tokenizers.train(settings, texts.unlabelled)
    tokens, offsets = _flat(tokenizer, texts.unlabelled, None)
    labelled, places = _flat(tokenizer, texts.labelled, MAX_TOKENS)
    topics = sorted(set(texts.sections))
    np.savez_compressed(
        path,
        tokens=tokens,
        offsets=offsets,
        labelled_tokens=labelled,
        labelled_offsets=places,
        labels=np.array([topics.index(section) for section in texts.sections], np.uint8),
        splits=np.array([SPLITS.index(split) for split in texts.splits], np.uint8),
        topics=np.array(topics),
        vocab_size=np.int64(tokenizer.vocab_size),
        mask_id=np.int64(tokenizers.UNK_ID),
        special_ids=np.array(tokenizer.special_ids),
    )
    counts = collections.Counter(texts.splits)
    return (
        f"{len(texts.unlabelled):,} documents of {len(tokens):,} tokens to pretrain on; "
        f"{len(topics)} sections; labelled: "
        + ", ".join(f"{counts[split]:,} {split}" for split in SPLITS)
    )


def _flat(tokenizer, texts: list[str], longest: int | None) -> tuple[np.ndarray, np.ndarray]:
    """The concatenated texts, each between bos and eos, and their offsets [N + 1]."""
    documents = []
    for ids in tokenizer.encode_batch(texts):
        ids = [*tokenizer.opening, *ids, tokenizer.eos_id][:longest]
        documents.append(np.array(ids, np.uint16))
    offsets = np.cumsum([0, *map(len, documents)])
    return np.concatenate(documents), offsets.astype(np.uint32)


def _stanzas(path: pathlib.Path) -> Iterator[dict[str, str]]:
    """The fields of each stanza of a control file; continued lines keep their newlines."""
    opener = {".gz": gzip.open, ".xz": lzma.open}.get(path.suffix, open)
    with opener(path, "rt", encoding="utf-8") as file:  # type: ignore[operator]
        fields: dict[str, str] = {}
        last = ""
        for line in file:
            line = line.rstrip("\n")
            if not line:
                if fields:
                    yield fields
                fields = {}
            elif line[0].isspace():
                fields[last] += f"\n{line}"
            else:
                last, _, value = line.partition(":")
                fields[last] = value.strip()
        if fields:
            yield fields


def _paragraphs(description: str) -> Iterator[str]:
    """The synopsis and the paragraphs, which are separated by lines with only a full stop."""
    synopsis, _, body = description.partition("\n")
    for paragraph in [synopsis, *body.split("\n .")]:
        text = " ".join(paragraph.split())
        if text:
            yield text
