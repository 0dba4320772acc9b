"""Exact duplicates: documents of the same text, but for case and white space."""

import dataclasses
import unicodedata
from collections.abc import Iterable, Sequence
from typing import ClassVar

import numpy as np
import xxhash

from llmjax.data.cleaning import index as indexing
from llmjax.data.cleaning.document import Document
from llmjax.data.cleaning.duplicates import Duplicates, no_clusters

_SETTINGS = "exact"


@dataclasses.dataclass(frozen=True, eq=False)
class ExactDuplicates(Duplicates):
    """Turns away documents whose normalised text an earlier document has."""

    name: ClassVar[str] = "exact_duplicates"
    reason: ClassVar[str] = "exact duplicate"


def normalised(text: str) -> str:
    """The text without case, runs of white space and different codings of one character."""
    return unicodedata.normalize("NFC", " ".join(text.split()).casefold())


def index(documents: Iterable[Document]) -> indexing.Index:
    """The hashes of a shard's texts: 16 bytes a document.

    Hashes have 64 bits: among a billion different texts, two are expected to share one with a
    probability of 3 %.
    """
    found = ((document, _digest(document.text)) for document in documents)
    return indexing.build(found, 1, _SETTINGS)


def step(indices: Sequence[indexing.Index]) -> ExactDuplicates:
    """The step that lets one document of every text pass.

    Args:
        indices: of all shards, in any order.
    """
    files = indexing.all_files(indices, _SETTINGS)
    clusters = no_clusters()
    for hashes, keys in indexing.rows(indices, 0, files):
        same = np.flatnonzero(hashes[1:] == hashes[:-1])
        clusters = clusters.joined(keys[same + 1], keys[same])
    return ExactDuplicates(files, clusters)


def _digest(text: str) -> np.ndarray:
    data = normalised(text).encode(errors="surrogatepass")
    return np.array([[xxhash.xxh3_64_intdigest(data)]], np.uint64)
