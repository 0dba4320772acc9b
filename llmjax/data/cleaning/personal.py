"""Finds personal data, counts it, and replaces it by its kind.

Names of persons are not found, which would take a model and its errors.
"""

import collections
import dataclasses
from collections.abc import Callable, Iterable, Mapping
from typing import ClassVar, Literal

from llmjax import checks
from llmjax.data.cleaning import accounts, identifiers, keys, national
from llmjax.data.cleaning.document import Document, Rejected

# The finder of each kind. A span found by several belongs to the first.
FINDERS: Mapping[str, Callable[[str], Iterable[tuple[int, int]]]] = {
    "key": keys.find,
    "email": identifiers.emails,
    "iban": accounts.ibans,
    "card": accounts.cards,
    "national_id": national.ids,
    "ip": identifiers.addresses,
    "phone": identifiers.phones,
}
# Replaces what was already found: not a letter, a digit or a mark within a number.
_TAKEN = "\0"


@dataclasses.dataclass(frozen=True)
class Found:
    """Personal data of a kind in [start, end)."""

    kind: str
    start: int
    end: int


@dataclasses.dataclass(frozen=True)
class PersonalData:
    """Finds personal data; the metadata `personal` counts them by kind.

    Dolma (Soldaini et al. 2024, section 5.3) drops documents with more than five and masks those in
    others: `PersonalData(mode="drop", most=5)`. FineWeb masks e-mail and public IP addresses.

    Attributes:
        kinds: kinds to look for: "key" (API keys, tokens, passwords), "email", "iban", "card",
            "national_id", "ip" (public addresses) and "phone".
        mode: "placeholder" replaces each by a placeholder; "drop" rejects documents with more than
            `most` and does the same to others; "count" leaves the text unchanged.
        most: maximum per document with mode "drop".
        placeholder: the replacement; `{kind}` is the kind in capitals.
    """

    name: ClassVar[str] = "personal_data"

    kinds: tuple[str, ...] = tuple(FINDERS)
    mode: Literal["placeholder", "drop", "count"] = "placeholder"
    most: int = 0
    placeholder: str = "<{kind}>"

    def __post_init__(self) -> None:
        """Raises ValueError if a field is invalid."""
        checks.require_choices(self, "PersonalData")
        checks.require_at_least(0, self, "PersonalData", ("most",))
        unknown = sorted(set(self.kinds) - FINDERS.keys())
        if unknown:
            raise ValueError(f"PersonalData.kinds={unknown}: choose from {', '.join(FINDERS)}")
        try:
            self.placeholder.format(kind="")
        except (LookupError, ValueError) as error:
            raise ValueError(
                f"PersonalData.placeholder={self.placeholder!r}: may only contain {{kind}}"
            ) from error

    def __call__(self, document: Document) -> Document | Rejected:
        """The document with placeholders, or its rejection if it has too much personal data."""
        found = find(document.text, self.kinds)
        if not found:
            return document
        counts = collections.Counter(item.kind for item in found)
        counted = document.with_metadata(personal=dict(sorted(counts.items())))
        if self.mode == "count":
            return counted
        if self.mode == "drop" and len(found) > self.most:
            return Rejected(counted, "personal data", float(len(found)))
        return counted.with_text(_replaced(document.text, found, self._placeholder))

    def _placeholder(self, item: Found) -> str:
        return self.placeholder.format(kind=item.kind.upper())


def find(text: str, kinds: Iterable[str] = tuple(FINDERS)) -> list[Found]:
    """Personal data in a text, from left to right, without overlaps."""
    wanted = set(kinds)
    found: list[Found] = []
    for kind, finder in FINDERS.items():
        spans = set(finder(text)) if kind in wanted else set()
        own: list[Found] = []
        for start, stop in sorted(spans, key=lambda span: (span[0], -span[1])):
            if not own or start >= own[-1].end:
                own.append(Found(kind, start, stop))
        # Hides it from later finders.
        text = _replaced(text, own, lambda item: _TAKEN * (item.end - item.start))
        found += own
    return sorted(found, key=lambda item: item.start)


def _replaced(text: str, found: Iterable[Found], by: Callable[[Found], str]) -> str:
    """Replaces what was found, from left to right."""
    parts, end = [], 0
    for item in found:
        parts += [text[end : item.start], by(item)]
        end = item.end
    return "".join([*parts, text[end:]])
