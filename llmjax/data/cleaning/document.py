"""Documents, cleaning steps, and their composition."""

import dataclasses
import functools
from collections.abc import Callable, Iterable, Mapping
from typing import Any

# The language of a document for which no step has found one.
DEFAULT_LANGUAGE = "en"


@dataclasses.dataclass(frozen=True)
class Document:
    """An immutable text with its origin.

    What several steps need is computed once, on first use: `words` with datatrove's tokenizer for
    the document's language, so that thresholds mean the same as in the papers that publish them. A
    step that passes on the same text passes on these results.

    Attributes:
        text: its content.
        id: its origin, unique among all documents, such as `file:line`.
        source: the name of its corpus.
        metadata: JSON values: other fields of its record (`url`, `date`), and what steps found
            (`language`, `language_score`).
    """

    text: str
    id: str = ""
    source: str = ""
    metadata: Mapping[str, Any] = dataclasses.field(default_factory=dict)

    @property
    def language(self) -> str:
        """The language's ISO 639-1 code, as found by a step; English by default.

        Records may have a field of this name with another type, such as null or a list.
        """
        found = self.metadata.get("language")
        return found if isinstance(found, str) and found else DEFAULT_LANGUAGE

    @functools.cached_property
    def lines(self) -> tuple[str, ...]:
        """The lines, split by `str.splitlines`."""
        return tuple(self.text.splitlines())

    @functools.cached_property
    def words(self) -> tuple[str, ...]:
        """The words and punctuation marks in order, without white space."""
        from llmjax.data.cleaning import words

        return words.split(self.text, self.language)

    def with_text(self, text: str) -> "Document":
        """The document with another text; the same object if the text is equal."""
        return self if text == self.text else dataclasses.replace(self, text=text)

    def with_metadata(self, **found: Any) -> "Document":
        """The document with additional metadata."""
        other = dataclasses.replace(self, metadata={**self.metadata, **found})
        if other.language == self.language and "words" in self.__dict__:
            other.__dict__["words"] = self.words
        if "lines" in self.__dict__:
            other.__dict__["lines"] = self.lines
        return other


@dataclasses.dataclass(frozen=True)
class Rejected:
    """A document that a step rejected.

    Attributes:
        document: the document as the step received it.
        reason: a short phrase that is the same for all documents with this fault; reports count by
            it.
        score: the deciding number, if any.
        step: the step's name, which `clean` fills in.
    """

    document: Document
    reason: str
    score: float | None = None
    step: str = ""


# A step is a pure function of one document. Steps with settings are frozen dataclasses with
# `__call__`; steps that compare documents hold what they compare with.
Step = Callable[[Document], Document | Rejected]


def name_of(step: Step) -> str:
    """A step's name in reports: its `name`, or that of its function or class."""
    name = getattr(step, "name", "") or getattr(step, "__name__", "")
    return str(name or type(step).__name__)


def clean(document: Document, steps: Iterable[Step]) -> Document | Rejected:
    """Passes a document through steps in order, until one rejects it.

    This is the textbook's `clean_text_data`. It can be used by itself:

        clean(Document("Some text."), [Repair(), Language(("en",)), GopherQuality()])

    Args:
        document: the document to clean.
        steps: pure functions of one document.

    Returns:
        The document after the last step, or `Rejected` with the name of the step that rejected it.
    """
    for step in steps:
        result = step(document)
        if isinstance(result, Rejected):
            return dataclasses.replace(result, step=result.step or name_of(step))
        document = result
    return document
