"""Documents of a length worth reading, and no longer than later steps can bear."""

import dataclasses
from typing import ClassVar

from llmjax.data.cleaning.document import Document, Rejected


@dataclasses.dataclass(frozen=True)
class Length:
    """Turns away what is too short or too long, in characters.

    Attributes:
        minimum: characters of the shortest document.
        maximum: characters of the longest: some steps take time with the square of a line.
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
        """The document itself, or that it is too short or too long."""
        size = len(document.text)
        if size < self.minimum:
            return Rejected(document, "too short", size)
        if size > self.maximum:
            return Rejected(document, "too long", size)
        return document
