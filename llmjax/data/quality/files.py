"""Finds the files to measure: raw files, or the output of cleaning."""

import collections
import dataclasses
import pathlib
import re
from collections.abc import Sequence
from typing import Literal

from llmjax.data import config, documents, tokenizer
from llmjax.data.cleaning import pipeline, stored, task
from llmjax.data.quality.measuring import QualityConfig
from llmjax.data.quality.survey import Survey

_DEFAULT = QualityConfig()

Kind = Literal["raw", "cleaned", "rejected"]
Split = Literal["file", "paragraph", "line"]


@dataclasses.dataclass(frozen=True)
class Piece:
    """A unit of measuring: a file, the kind of its documents, and their source."""

    kind: Kind
    file: documents.File
    source: config.Source

    def measure(
        self,
        quality: QualityConfig = _DEFAULT,
        advance: documents.Advance = lambda _: None,
    ) -> Survey:
        """Measures the file as a stream.

        Args:
            quality: settings of the measurement.
            advance: called with the number of bytes read since the last call.
        """
        survey = Survey(quality)
        if self.kind == "raw":
            self._read_raw(survey, advance)
        elif self.kind == "cleaned":
            for document in stored.read(self.file.path, self.source.name, advance):
                survey.add_after(document)
        else:
            rejected = stored.read_rejected(self.file.path, self.source.name, advance)
            for item, count in rejected:
                survey.add_rejected(item, count)
        return survey

    def _read_raw(self, survey: Survey, advance: documents.Advance) -> None:
        for item in documents.read(self.file, self.source, advance, metadata=True):
            if isinstance(item, documents.Rejected):
                survey.add_rejected(task.unread(item, self.source.name), item.count)
            else:
                survey.add_before(item)


def find(
    paths: Sequence[str],
    text_field: str = "text",
    split: Split = "file",
) -> tuple[list[Piece], tuple[str, ...]]:
    """Finds the files at some paths, each path a source, or in a folder of prepared data.

    Args:
        paths: files, folders and globs; or one folder that cleaning wrote.
        text_field: the field or column that holds the text.
        split: what a document of a plain text file is.

    Returns:
        The files, and the names of the cleaning steps in order (empty for raw files).

    Raises:
        FileNotFoundError: there is nothing to read at a path.
        ValueError: a file's suffix does not name a supported format, or a folder of prepared data
            holds no text, or is not the only path.
    """
    if len(paths) == 1 and (pathlib.Path(paths[0]) / task.CLEANED_FOLDER).is_dir():
        return prepared(pathlib.Path(paths[0]))
    for folder in map(pathlib.Path, paths):
        if (folder / tokenizer.META_FILE).is_file():
            raise ValueError(
                f"{str(folder)!r} holds prepared data. Only a folder whose text was cleaned can be "
                "measured, by itself: otherwise name the text that it was made from."
            )
    names = [_name(path) for path in paths]
    often = collections.Counter(names)
    pieces = []
    for number, (path, name) in enumerate(zip(paths, names, strict=True)):
        unique = name if often[name] == 1 else f"{name}-{number}"
        source = config.Source(unique, path, text_field=text_field, split=split)
        pieces += [Piece("raw", file, source) for file in documents.find_files(source)]
    return pieces, ()


def prepared(folder: pathlib.Path) -> tuple[list[Piece], tuple[str, ...]]:
    """The files that cleaning left in a folder, and the names of its steps in order."""
    kinds: tuple[tuple[Kind, str], ...] = (
        ("cleaned", task.CLEANED_FOLDER),
        ("rejected", task.REJECTED_FOLDER),
    )
    pieces = [
        Piece(kind, stored.file(path), config.Source(path.parent.name, str(path)))
        for kind, name in kinds
        for path in sorted((folder / name).glob(f"*/*{stored.SUFFIX}"))
    ]
    counts = pipeline.load_counts(folder).values()
    return pieces, tuple(dict.fromkeys(step for source in counts for step in source.rejected))


def _name(path: str) -> str:
    """Derives a source's name from its path."""
    stem = pathlib.Path(path).name.partition(".")[0]
    return re.sub(r"[^A-Za-z0-9_-]+", "-", stem).strip("-") or "source"
