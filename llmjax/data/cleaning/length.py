"""Limits the length of documents, to what is worth reading and what later steps can handle."""

import dataclasses
from typing import ClassVar

from llmjax.data.cleaning.document import Document, Rejected


@dataclasses.dataclass(frozen=True)
class Length:
    """Rejects documents that are too short or too long, in characters.

    Attributes:
        minimum: minimum number of characters.
        maximum: maximum number of characters; some steps take quadratic time in a line's length.
    """

    name: ClassVar[str] = "length"

    minimum: int = 1
    maximum: int = 5_000_000

    def __post_init__(self) -> None:
        if not 0 <= self.minimum <= self.maximum:
            raise ValueError(
                f"Length.minimum={self.minimum} and maximum={self.maximum}: use 0 <= minimum <= "
                "maximum."
            )

    def __call__(self, document: Document) -> Document | Rejected:
        """The document, or its rejection as too short or too long."""
        size = len(document.text)
        if size < self.minimum:
            return Rejected(document, "too short", size)
        if size > self.maximum:
            return Rejected(document, "too long", size)
        return document
