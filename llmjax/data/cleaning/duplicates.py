"""Clusters of duplicate documents, and the step that keeps the first of each."""

import dataclasses
from typing import ClassVar

import numpy as np

from llmjax.data.cleaning.document import Document, Rejected
from llmjax.data.cleaning.index import Files


@dataclasses.dataclass(frozen=True, eq=False)
class Clusters:
    """Documents to drop, each with the first document of its cluster, as keys.

    Attributes:
        dropped: uint64 [N], ascending.
        survivors: uint64 [N], the first document of each one's cluster.
    """

    dropped: np.ndarray
    survivors: np.ndarray

    def joined(self, left: np.ndarray, right: np.ndarray) -> "Clusters":
        """Merges the clusters of each document in `left` and its peer in `right`.

        Args:
            left: keys, uint64 [M].
            right: keys, uint64 [M].
        """
        # Takes half a second to import.
        from scipy import sparse
        from scipy.sparse import csgraph

        left = np.concatenate([self.dropped, left])
        right = np.concatenate([self.survivors, right])
        keys, ends = np.unique(np.concatenate([left, right]), return_inverse=True)
        pairs = ends.reshape(2, -1)
        edges = (np.ones(len(left), bool), (pairs[0], pairs[1]))
        graph = sparse.coo_array(edges, shape=(len(keys), len(keys)))
        _, labels = csgraph.connected_components(graph, directed=False)
        # Keys are sorted, so the first occurrence of a label is that of its smallest key.
        _, firsts = np.unique(labels, return_index=True)
        survivors = keys[firsts][labels] if len(keys) else keys
        others = keys != survivors
        return Clusters(keys[others], survivors[others])


def no_clusters() -> Clusters:
    """Clusters of single documents."""
    return Clusters(np.zeros(0, np.uint64), np.zeros(0, np.uint64))


@dataclasses.dataclass(frozen=True, eq=False)
class Duplicates:
    """Rejects all documents of a cluster except the first, in order of source, file and position.

    Documents are identified by source and `id`, so steps in between may have edited them. The
    metadata of a rejected document names the one that is kept, `duplicate_of`.
    """

    name: ClassVar[str] = "duplicates"
    reason: ClassVar[str] = "duplicate"

    files: Files
    clusters: Clusters

    def __call__(self, document: Document) -> Document | Rejected:
        """The document, or its rejection if another one represents it."""
        key = self.files.key(document)
        dropped = self.clusters.dropped
        if key is None or not len(dropped):
            return document
        at = int(np.searchsorted(dropped, np.uint64(key)))
        if at == len(dropped) or int(dropped[at]) != key:
            return document
        survivor = self.files.id(int(self.clusters.survivors[at]))
        return Rejected(document.with_metadata(duplicate_of=survivor), self.reason)
