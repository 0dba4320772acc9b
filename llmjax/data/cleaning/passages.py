"""Repeated passages: lines and paragraphs in many documents, such as menus, notices, quotations.

In short:

    indices = [passages.index(shard, settings) for shard in shards]  # each anywhere
    step = passages.step(indices, settings)
"""

import dataclasses
import itertools
from collections.abc import Iterable, Iterator, Sequence
from typing import ClassVar

import numpy as np

from llmjax import checks
from llmjax.data.cleaning import index as indexing
from llmjax.data.cleaning import pieces, shingles
from llmjax.data.cleaning.document import Document, Rejected


@dataclasses.dataclass(frozen=True)
class Passages:
    """When a passage counts as repeated.

    The defaults remove all but the first of equal paragraphs, as Dolma does (Soldaini et al. 2024,
    section 5.4); `Passages(unit="sentence", span=3)` is C4's rule (Raffel et al. 2020, section
    2.2); `keep_first=False` with a larger `most` removes boilerplate but not quotations.

    Attributes:
        unit: unit of which passages consist.
        span: consecutive units in a passage.
        most: maximum number of documents with the same passage.
        keep_first: whether the first document with a repeated passage keeps it.
        shortest: passages with fewer words are never removed.
        least: an edited document with fewer words is rejected.
    """

    unit: pieces.Unit = "paragraph"
    span: int = 1
    most: int = 1
    keep_first: bool = True
    shortest: int = 8
    least: int = 50

    def __post_init__(self) -> None:
        """Raises ValueError if a field is invalid."""
        checks.require_choices(self, "Passages")
        checks.require_at_least(1, self, "Passages", ("span", "most", "shortest"))
        checks.require_at_least(0, self, "Passages", ("least",))

    @property
    def _hashing(self) -> str:
        return f"Passages({self.span} {self.unit}s, of {self.shortest} words and more)"


@dataclasses.dataclass(frozen=True, eq=False)
class RepeatedPassages:
    """Removes passages that too many documents have; rejects documents with little else.

    Attributes:
        settings: when a passage counts as repeated.
        files: files of all documents.
        hashes: hashes of the repeated passages, uint64 [N], ascending.
        firsts: keys of the first documents that have them, uint64 [N].
    """

    name: ClassVar[str] = "repeated_passages"

    settings: Passages
    files: indexing.Files
    hashes: np.ndarray
    firsts: np.ndarray

    def __call__(self, document: Document) -> Document | Rejected:
        """The document without its repeated passages, whose number is in its metadata."""
        units = pieces.cut(document.text, self.settings.unit)
        goes = np.zeros(len(units), bool)
        for start, passage in _passages(units, self.settings):
            if self._repeated(passage, document):
                goes[start : start + self.settings.span] = True
        if not goes.any():
            return document
        kept = "".join(unit for unit, gone in zip(units, goes, strict=True) if not gone)
        if sum(1 for _ in shingles.WORD.finditer(kept)) < self.settings.least:
            return Rejected(document, "mostly repeated passages", float(goes.mean()))
        return document.with_text(kept.rstrip()).with_metadata(repeated_passages=int(goes.sum()))

    def _repeated(self, passage: int, document: Document) -> bool:
        at = int(np.searchsorted(self.hashes, np.uint64(passage)))
        if at == len(self.hashes) or int(self.hashes[at]) != passage:
            return False
        first = self.settings.keep_first and int(self.firsts[at]) == self.files.key(document)
        return not first


def index(documents: Iterable[Document], settings: Passages) -> indexing.Index:
    """The passages of a shard's documents, 16 bytes each."""
    return indexing.build(_rows(documents, settings), 1, settings._hashing)


def step(indices: Sequence[indexing.Index], settings: Passages) -> RepeatedPassages:
    """Builds the step that removes passages found in more than `most` documents of all shards.

    Args:
        indices: indices of all shards, in any order.
        settings: settings that the indices were made with.
    """
    files = indexing.all_files(indices, settings._hashing)
    found: list[np.ndarray] = []
    for hashes, keys in indexing.rows(indices, 0, files):
        # Here a document has each of its passages once: rows with one hash are distinct documents.
        repeated = np.flatnonzero(hashes[settings.most :] == hashes[: -settings.most])
        _, at = np.unique(hashes[repeated], return_index=True)
        found.append(np.stack([hashes, keys])[:, repeated[at]])
    hashes, firsts = np.concatenate(found, axis=1)
    return RepeatedPassages(settings, files, hashes, firsts)


def _rows(
    documents: Iterable[Document], settings: Passages
) -> Iterator[tuple[Document, np.ndarray]]:
    for document in documents:
        units = pieces.cut(document.text, settings.unit)
        found = {passage for _, passage in _passages(units, settings)}
        yield document, np.array(sorted(found), np.uint64).reshape(-1, 1)


def _passages(units: Sequence[str], settings: Passages) -> Iterator[tuple[int, int]]:
    """(first unit, hash) of every passage that is long enough."""
    words = [shingles.WORD.findall(unit) for unit in units]
    for start in range(len(units) - settings.span + 1):
        passage = itertools.chain.from_iterable(words[start : start + settings.span])
        found = list(passage)
        if len(found) >= settings.shortest:
            yield start, shingles.hash_of(" ".join(found))
