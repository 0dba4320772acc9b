"""Counts of documents: how many came in, passed and were rejected, by step and reason."""

import collections
import dataclasses
from collections.abc import Iterator, Sequence
from typing import Any

from llmjax.data import documents
from llmjax.data.cleaning.document import Rejected

# Not a cleaning step: counts documents that could not be read.
READ = "read"
# Prefix of the reasons for documents that a step failed on.
FAILED = "failed: "


@dataclasses.dataclass(frozen=True)
class Row:
    """The counts of one step.

    Attributes:
        step: its name.
        documents: number of documents that reached it.
        rejected: number of documents it rejected, by reason.
        seconds: time it took, summed over all processes.
    """

    step: str
    documents: int
    rejected: dict[str, int]
    seconds: float

    @property
    def kept(self) -> int:
        """Number of documents that passed."""
        return self.documents - sum(self.rejected.values())


class Counts:
    """Counts of the documents of a part, a source or a corpus; they always add up.

    Attributes:
        documents: documents that came in, including malformed ones.
        kept: documents that came out.
        read_bytes: bytes read.
        rejected: documents rejected by each step in order, by reason.
        seconds: time of each step.
        first: id and beginning of the first malformed document, by reason.
    """

    def __init__(self, steps: Sequence[str] = ()) -> None:
        self.documents, self.kept, self.read_bytes = 0, 0, 0
        self.rejected = {step: collections.Counter[str]() for step in steps}
        self.seconds = dict.fromkeys(steps, 0.0)
        self.first: dict[str, tuple[str, str]] = {}

    def reject(self, item: Rejected, count: int = 1) -> None:
        """Counts documents that were rejected together, represented by one of them."""
        self.rejected[item.step][item.reason] += count
        if is_damage(item.step, item.reason):
            shown = item.document.text[: documents.RAW_BYTES]
            self.first.setdefault(item.reason, (item.document.id, shown))

    def check(self) -> None:
        """Raises RuntimeError unless documents equal those kept plus those rejected."""
        lost = self.documents - self.kept - sum(c.total() for c in self.rejected.values())
        if lost:
            raise RuntimeError(f"{lost} of {self.documents} documents are unaccounted for")

    def rows(self) -> Iterator[Row]:
        """The counts of each step, in order."""
        left = self.documents
        for step, rejected in self.rejected.items():
            yield Row(step, left, dict(rejected), self.seconds[step])
            left -= rejected.total()

    @property
    def damage(self) -> collections.Counter[str]:
        """Malformed documents by reason: without text, or failing a step."""
        return collections.Counter(
            {
                reason: count
                for step, rejected in self.rejected.items()
                for reason, count in rejected.items()
                if is_damage(step, reason)
            }
        )

    @property
    def reasons(self) -> dict[str, int]:
        """Rejected documents by `step: reason`, or by `reason` if they could not be read."""
        return {
            reason if step == READ else f"{step}: {reason}": count
            for step, rejected in self.rejected.items()
            for reason, count in rejected.items()
        }

    def then(self, later: "Counts") -> "Counts":
        """The counts of these steps followed by later ones, which received what is kept here."""
        both = self + later
        both.documents, both.kept = self.documents, later.kept
        return both

    def __add__(self, other: "Counts") -> "Counts":
        """The counts of two parts together."""
        both = Counts(list(dict.fromkeys([*self.rejected, *other.rejected])))
        for counts in (self, other):
            both.documents += counts.documents
            both.kept += counts.kept
            both.read_bytes += counts.read_bytes
            for step, rejected in counts.rejected.items():
                both.rejected[step] += rejected
                both.seconds[step] += counts.seconds[step]
        both.first = {**other.first, **self.first}
        return both

    def plain(self) -> dict[str, Any]:
        """The counts as JSON values."""
        return {
            "documents": self.documents,
            "kept": self.kept,
            "read_bytes": self.read_bytes,
            "rejected": {step: dict(found) for step, found in self.rejected.items()},
            "seconds": {step: round(taken, 4) for step, taken in self.seconds.items()},
            "first": self.first,
        }

    @classmethod
    def from_plain(cls, record: dict[str, Any]) -> "Counts":
        """The inverse of `plain`."""
        counts = cls(list(record["rejected"]))
        counts.documents, counts.kept = record["documents"], record["kept"]
        counts.read_bytes = record["read_bytes"]
        for step, rejected in record["rejected"].items():
            counts.rejected[step].update(rejected)
        counts.seconds.update(record["seconds"])
        counts.first = {reason: (place, text) for reason, (place, text) in record["first"].items()}
        return counts


def is_damage(step: str, reason: str) -> bool:
    """Whether documents rejected for this reason were malformed, as opposed to judged."""
    return step == READ or reason.startswith(FAILED)
