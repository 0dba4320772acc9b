"""Directories of prepared data: built once, atomically, and recognised when complete.

A directory is complete once it has a manifest. Until then everything is written to a folder inside
it and moved at the end, so a killed run leaves nothing that looks complete. The next run with the
same fingerprint and versions finds that folder as it was, and may continue in it. A complete
directory with the same fingerprint is left alone.
"""

import contextlib
import dataclasses
import fcntl
import hashlib
import importlib.metadata
import json
import shutil
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import rich.console
import rich.progress

from llmjax.data import config, documents, hub_tokenizer, rejects, shards, tokenizer
from llmjax.data.cleaning import pipeline

PARTIAL_FOLDER = "partial"
# In that folder, while it is incomplete: how far the work is, and of which data.
PROGRESS_FOLDER = "progress"
_KEY_FILE = "data.json"
_LOCK_FILE = ".lock"
_TOKENIZER_FILES = {"sentencepiece": (tokenizer.MODEL_FILE,), "hub": hub_tokenizer.FILES}

_PACKAGES = ("llmjax", "array-record", "grain", "numpy", "sentencepiece", "tokenizers")

Inputs = Mapping[str, tuple[documents.File, ...]]
Settings = config.DataConfig | config.ExampleConfig


def make(
    directory: Path,
    settings: Settings,
    fingerprint: str,
    build: Callable[[Path], shards.Manifest],
    *,
    overwrite: bool,
) -> shards.Manifest:
    """Builds a directory's data unless it is complete; only one process at a time does.

    Args:
        directory: folder of the data; created if necessary.
        settings: settings that the data is built from.
        fingerprint: hash of the settings and the input files, from `fingerprint`.
        build: writes the data into a folder and returns the manifest, which is saved last. The
            folder holds what a killed run for the same data left in it.
        overwrite: whether to replace data with another fingerprint.

    Raises:
        ValueError: the directory holds data with another fingerprint and `overwrite` is false, or
            files that are not from here and would be overwritten.
    """
    _require_ours(directory)
    directory.mkdir(parents=True, exist_ok=True)
    with _lock(directory):
        done = _finished(directory, overwrite)
        if done is not None and done.fingerprint == fingerprint:
            return _reweighted(done, settings, directory)
        if done is not None and not overwrite:
            raise ValueError(_difference(directory, done, settings))
        _clear(directory)
        partial = directory / PARTIAL_FOLDER
        _begin(partial, fingerprint)
        try:
            manifest = build(partial)
        except ValueError:  # the same would come of it again
            shutil.rmtree(partial)
            raise
        shutil.rmtree(partial / PROGRESS_FOLDER)
        _move(partial, directory)
        manifest.save(directory)
    return manifest


def find_inputs(
    source: config.Source | config.ExampleSource,
    directory: Path,
    suffixes: tuple[str, ...] = documents.SUFFIXES,
) -> tuple[documents.File, ...]:
    """A source's files as `documents.find_files` lists them, without what is written from them.

    The directory of the data may be inside the folder that the source reads.

    Raises:
        FileNotFoundError: there is nothing else to read at the source's path.
        ValueError: a file's suffix does not name a supported format.
    """
    root = directory.resolve()
    found = documents.find_files(source, suffixes)
    others = tuple(file for file in found if not _writes(root, file.path.resolve()))
    if not others:
        raise FileNotFoundError(
            f"Source {source.name!r}: everything to read at {source.path!r} was written by "
            f"preparing data in {str(directory)!r}. Name the text itself, or another directory."
        )
    return others


def _writes(directory: Path, path: Path) -> bool:
    """Whether a readable file is one that preparing writes into a directory."""
    if not path.is_relative_to(directory):
        return False
    inside = path.relative_to(directory)
    return inside.parts[0] in (PARTIAL_FOLDER, rejects.REJECTED_FILE) or pipeline.writes(inside)


def _begin(partial: Path, fingerprint: str) -> None:
    """Makes the folder to build in, or leaves it as a killed run for the same data left it."""
    key = partial / PROGRESS_FOLDER / _KEY_FILE
    wanted = json.dumps([fingerprint, _versions()])
    if key.is_file() and key.read_text() == wanted:
        return
    shutil.rmtree(partial, ignore_errors=True)
    key.parent.mkdir(parents=True)
    key.write_text(wanted)


def fingerprint(settings: Settings, inputs: Inputs, *others: str) -> str:
    """Hash of settings, input files, and everything else that determines the shards."""
    files = {
        name: [(file.name, file.size, file.modified_ns) for file in files]
        for name, files in inputs.items()
    }
    record = json.dumps([shards.FORMAT_VERSION, plain(settings), files, *others], sort_keys=True)
    return hashlib.sha256(record.encode()).hexdigest()


def plain(settings: Settings) -> dict[str, Any]:
    """The settings that determine the shards, as plain values: no paths, no weights."""
    fields = json.loads(json.dumps(dataclasses.asdict(settings)))
    del fields["directory"], fields["mixture"]
    for source in fields["sources"]:
        del source["path"], source["weight"]
    if isinstance(settings, config.DataConfig):
        del fields["tokenizer"]["path"], fields["cleaning"]
        if settings.cleaning.steps:
            fields["cleaning"] = json.loads(json.dumps(settings.cleaning.plain()))
        if settings.tokenizer.kind == "hub":
            hashes = hashlib.sha256()
            for content in hub_tokenizer.read_files(Path(settings.tokenizer.path)).values():
                hashes.update(hashlib.sha256(content).digest())
            fields["tokenizer"]["files"] = hashes.hexdigest()
    return fields


def manifest(
    settings: Settings,
    fingerprint: str,
    encoder: tokenizer.Tokenizer,
    sources: Sequence[shards.SourceManifest],
    examples: shards.Examples | None = None,
) -> shards.Manifest:
    """The manifest of shards that were made from sources."""
    return shards.Manifest(
        fingerprint=fingerprint,
        config=plain(settings),
        tokenizer={
            "kind": encoder.kind,
            "vocab_size": encoder.vocab_size,
            "fingerprint": encoder.fingerprint,
        },
        dtype=shards.token_dtype(encoder.vocab_size).str,
        sources=tuple(sources),
        versions=_versions(),
        examples=examples,
    )


def _finished(directory: Path, overwrite: bool) -> shards.Manifest | None:
    """The manifest of complete data; None if there is none, or none worth keeping."""
    try:
        return shards.load_manifest(directory)
    except FileNotFoundError:
        return None
    except ValueError:
        if overwrite:
            return None
        raise


def _reweighted(manifest: shards.Manifest, settings: Settings, directory: Path) -> shards.Manifest:
    """The manifest with the config's weights, which do not affect the shards."""
    given: Sequence[config.Source | config.ExampleSource] = settings.sources
    sources = tuple(
        dataclasses.replace(done, weight=source.weight)
        for done, source in zip(manifest.sources, given, strict=True)
    )
    if sources != manifest.sources:
        manifest = dataclasses.replace(manifest, sources=sources)
        manifest.save(directory)
    return manifest


def _difference(directory: Path, done: shards.Manifest, settings: Settings) -> str:
    wanted = plain(settings)
    changes = [
        f"{name}: {done.config.get(name)} there, {wanted.get(name)} now"
        for name in dict.fromkeys([*wanted, *done.config])
        if done.config.get(name) != wanted.get(name)
    ]
    others = "the input files have changed, or the model that judged them"
    if isinstance(settings, config.ExampleConfig):
        others = "the input files, the tokenizer or the template have changed"
    return (
        f"{str(directory)!r} holds data that was prepared differently "
        f"({'; '.join(changes) or others}). Choose another "
        "directory, or remove this one (in Python: overwrite=True)."
    )


def _require_ours(directory: Path) -> None:
    """Raises ValueError for what would be overwritten and is not from an earlier run."""
    if any((directory / name).is_file() for name in (_LOCK_FILE, shards.MANIFEST_FILE)):
        return
    for name in (rejects.REJECTED_FILE, PARTIAL_FOLDER):
        if (directory / name).exists():
            raise ValueError(
                f"{str(directory / name)!r} has the name of what preparing data writes, but is not "
                "from there: choose another directory."
            )


def _clear(directory: Path) -> None:
    """Removes what an earlier or interrupted `prepare` left, the manifest first.

    The directory may also hold files of others, such as the sources or a checkpoint.
    """
    for name in (shards.MANIFEST_FILE, rejects.REJECTED_FILE):
        (directory / name).unlink(missing_ok=True)
    meta = directory / tokenizer.META_FILE
    if meta.is_file():
        kind = json.loads(meta.read_text())["kind"]
        for name in _TOKENIZER_FILES.get(kind, ()):
            (directory / name).unlink(missing_ok=True)
        meta.unlink()
    for path in (directory / shards.SHARD_FOLDER).glob(f"*/*{shards.SUFFIX}"):
        path.unlink()


def _move(folder: Path, target: Path) -> None:
    """Moves all files in a folder to their place in another, and removes the folder."""
    for path in [path for path in folder.rglob("*") if path.is_file()]:
        place = target / path.relative_to(folder)
        place.parent.mkdir(parents=True, exist_ok=True)
        path.replace(place)
    shutil.rmtree(folder)


@contextlib.contextmanager
def _lock(directory: Path) -> Iterator[None]:
    """Lets one process at a time prepare a directory; others wait and find the work done."""
    with (directory / _LOCK_FILE).open("w") as stream:
        fcntl.flock(stream, fcntl.LOCK_EX)
        yield


def progress() -> rich.progress.Progress:
    """A progress bar of input bytes with rate and time left, on stderr and only on a terminal."""
    return rich.progress.Progress(
        rich.progress.TextColumn("{task.description}"),
        rich.progress.BarColumn(),
        rich.progress.DownloadColumn(),
        rich.progress.TransferSpeedColumn(),
        rich.progress.TimeRemainingColumn(),
        console=rich.console.Console(stderr=True),
        disable=not sys.stderr.isatty(),
    )


def _versions() -> dict[str, str]:
    return {name: _version(name) for name in _PACKAGES}


def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "not installed"
