"""Streams of documents and batches that any number of processes can resume."""

import atexit
import weakref
from collections.abc import Mapping, Sequence
from typing import Any

import grain
import grain.experimental
import numpy as np

from llmjax.data.packing import Batch


class Dealt(grain.MapDataset[np.ndarray]):
    """One of n streams, which gets one of every n documents.

    Which one is random, by seed. Otherwise a stream could fall in step with the interleaving of
    several sources and get a single source. (grain's own shuffle takes milliseconds for so few.)
    """

    def __init__(self, documents: grain.MapDataset, stream: int, count: int, seed: int) -> None:
        super().__init__(documents)
        self._stream, self._count, self._seed = stream, count, seed

    def __len__(self) -> int:
        return len(self._parent) // self._count

    def __getitem__(self, index: Any) -> Any:
        if isinstance(index, slice):
            return self.slice(index)
        order = np.random.default_rng((self._seed, index)).permutation(self._count)
        return self._parent[index * self._count + int(order[self._stream])]


class Together(grain.IterDataset[Batch]):
    """The batches of several streams, concatenated; `first` is the index of the first stream."""

    def __init__(self, streams: Sequence[grain.IterDataset], first: int) -> None:
        super().__init__(streams)
        self._first = first

    def __iter__(self) -> grain.DatasetIterator:
        return _TogetherIterator([iter(stream) for stream in self._parents], self._first)


class _TogetherIterator(grain.DatasetIterator[Batch]):
    """The state names the streams, so that those of all processes can be redistributed."""

    def __init__(self, streams: Sequence[grain.DatasetIterator], first: int) -> None:
        super().__init__(streams)
        self._first = first

    def __next__(self) -> Batch:
        parts = [next(stream) for stream in self._parents]
        return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}

    def get_state(self) -> dict[str, Any]:
        numbers = map(str, range(self._first, self._first + len(self._parents)))
        return {"streams": {i: s.get_state() for i, s in zip(numbers, self._parents, strict=True)}}

    def set_state(self, state: dict[str, Any]) -> None:
        saved = state["streams"]
        for number, stream in enumerate(self._parents, start=self._first):
            if str(number) not in saved:
                raise ValueError(
                    f"the saved data position is that of streams {', '.join(saved)}, and "
                    f"stream {number} is needed here: give the states of all processes, saved with "
                    "the same batch_size"
                )
            stream.set_state(saved[str(number)])


def _joined(state: Any) -> Any:
    """Merges the states of all processes into one state for the whole batch."""
    states = state.get("processes")
    if not states:
        return state
    if "streams" not in states[0]:
        return states[0]  # all processes read everything, so their states are equal
    return {"streams": {i: place for one in states for i, place in one["streams"].items()}}


def _with_tuples(state: Any) -> Any:
    """Restores tuples that JSON made lists: grain marks an empty slice by the tuple (-1, -1)."""
    if isinstance(state, Mapping):
        return {name: _with_tuples(value) for name, value in state.items()}
    return tuple(map(_with_tuples, state)) if isinstance(state, list) else state


class Prefetch(grain.experimental.ThreadPrefetchIterDataset):
    """Prepares batches in a thread."""

    def __iter__(self) -> grain.DatasetIterator:
        return _PrefetchIterator(iter(self._parent), self._prefetch_buffer_size)


class _PrefetchIterator(grain.experimental.ThreadPrefetchDatasetIterator):
    """Closes once, before the interpreter exits: grain's own fails when it outlives modules."""

    def __init__(self, parent: grain.DatasetIterator, size: int) -> None:
        super().__init__(parent, size)
        self._open = True
        atexit.register(_close, weakref.ref(self))

    def set_state(self, state: dict[str, Any]) -> None:
        super().set_state(_with_tuples(_joined(state)))

    def close(self) -> None:
        if self._open:
            self._open = False
            super().close()


def _close(alive: weakref.ref[_PrefetchIterator]) -> None:
    iterator = alive()
    if iterator is not None:
        iterator.close()
