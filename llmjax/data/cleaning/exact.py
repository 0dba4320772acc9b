"""Exact duplicates: documents with the same text, ignoring case and white space."""

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
    """Rejects documents whose normalised text equals that of an earlier document."""

    name: ClassVar[str] = "exact_duplicates"
    reason: ClassVar[str] = "exact duplicate"


def normalised(text: str) -> str:
    """The text without case, repeated white space and variant encodings of a character."""
    return unicodedata.normalize("NFC", " ".join(text.split()).casefold())


def index(documents: Iterable[Document]) -> indexing.Index:
    """Hashes of a shard's texts, 16 bytes per document.

    Hashes have 64 bits: among a billion distinct texts, the probability of a collision is 3 %.
    """
    found = ((document, _digest(document.text)) for document in documents)
    return indexing.build(found, 1, _SETTINGS)


def step(indices: Sequence[indexing.Index]) -> ExactDuplicates:
    """Builds the step that keeps one document of every text.

    Args:
        indices: indices of all shards, in any order.
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
