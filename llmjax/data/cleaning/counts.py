"""What became of documents: how many came, went on and were turned away, where and why."""

import collections
import dataclasses
from collections.abc import Iterator, Sequence
from typing import Any

from llmjax.data import documents
from llmjax.data.cleaning.document import Rejected

# Not a step of cleaning, but where documents are lost that cannot be read.
READ = "read"
# How the reasons of documents begin that a step could not work on.
FAILED = "failed: "


@dataclasses.dataclass(frozen=True)
class Row:
    """What one step did.

    Attributes:
        step: its name.
        documents: how many came to it.
        rejected: how many it turned away, by reason.
        seconds: what it took, added up over all processes.
    """

    step: str
    documents: int
    rejected: dict[str, int]
    seconds: float

    @property
    def kept(self) -> int:
        """How many went on."""
        return self.documents - sum(self.rejected.values())


class Counts:
    """Documents of a part, a source or a corpus, which always add up.

    Attributes:
        documents: how many came in, malformed ones included.
        kept: how many came out.
        read_bytes: how much was read.
        rejected: of each step in order, how many it turned away, by reason.
        seconds: of each step, what it took.
        first: of each reason why a document is malformed, the first's id and beginning.
    """

    def __init__(self, steps: Sequence[str] = ()) -> None:
        self.documents, self.kept, self.read_bytes = 0, 0, 0
        self.rejected = {step: collections.Counter[str]() for step in steps}
        self.seconds = dict.fromkeys(steps, 0.0)
        self.first: dict[str, tuple[str, str]] = {}

    def reject(self, item: Rejected, count: int = 1) -> None:
        """Counts documents that were turned away together, one of which is shown."""
        self.rejected[item.step][item.reason] += count
        if is_damage(item.step, item.reason):
            shown = item.document.text[: documents.RAW_BYTES]
            self.first.setdefault(item.reason, (item.document.id, shown))

    def check(self) -> None:
        """Raises RuntimeError unless what came in is what went on and what was turned away."""
        lost = self.documents - self.kept - sum(c.total() for c in self.rejected.values())
        if lost:
            raise RuntimeError(f"{lost} of {self.documents} documents are unaccounted for")

    def rows(self) -> Iterator[Row]:
        """What each step did, in order."""
        left = self.documents
        for step, rejected in self.rejected.items():
            yield Row(step, left, dict(rejected), self.seconds[step])
            left -= rejected.total()

    @property
    def damage(self) -> collections.Counter[str]:
        """How many documents were malformed, by reason: no text, or one that a step failed on."""
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
        """How many documents were turned away, by `step: reason`, or `reason` where unreadable."""
        return {
            reason if step == READ else f"{step}: {reason}": count
            for step, rejected in self.rejected.items()
            for reason, count in rejected.items()
        }

    def then(self, later: "Counts") -> "Counts":
        """Those of these steps and of later ones, that what is kept here went on to."""
        both = self + later
        both.documents, both.kept = self.documents, later.kept
        return both

    def __add__(self, other: "Counts") -> "Counts":
        """Those of two parts together."""
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
        """The counts as JSON holds them."""
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
    """Whether documents turned away so were malformed, rather than judged."""
    return step == READ or reason.startswith(FAILED)
