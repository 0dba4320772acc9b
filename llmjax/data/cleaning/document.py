"""A document, what a step of cleaning makes of it, and steps one after the other."""

import dataclasses
import functools
from collections.abc import Callable, Iterable, Mapping
from typing import Any

# How a document looks to those who never said what language it is in.
DEFAULT_LANGUAGE = "en"


@dataclasses.dataclass(frozen=True)
class Document:
    """A text and where it comes from; never changed, only replaced.

    What several steps need of a text is worked out once, when the first of them asks: `words` by
    the tokenizer that datatrove has for the document's language, so that thresholds mean what they
    do in the papers that publish them. A step that hands on the same text hands on that work.

    Attributes:
        text: what the document says.
        id: where it comes from, unique among all: `file:line`, say.
        source: the name of its corpus.
        metadata: what is known of it: what its record had beside the text (`url`, `date`), and
            what steps found out (`language`, `language_score`). Values that JSON can hold.
    """

    text: str
    id: str = ""
    source: str = ""
    metadata: Mapping[str, Any] = dataclasses.field(default_factory=dict)

    @property
    def language(self) -> str:
        """The language's ISO 639-1 code: what a step found, or English.

        Records have fields of this name that hold something else: null, or a list.
        """
        found = self.metadata.get("language")
        return found if isinstance(found, str) and found else DEFAULT_LANGUAGE

    @functools.cached_property
    def lines(self) -> tuple[str, ...]:
        """The lines, as `str.splitlines` cuts them."""
        return tuple(self.text.splitlines())

    @functools.cached_property
    def words(self) -> tuple[str, ...]:
        """The words and marks, in order, without the space between them."""
        from llmjax.data.cleaning import words

        return words.split(self.text, self.language)

    def with_text(self, text: str) -> "Document":
        """The same document with another text; itself where that is the same."""
        return self if text == self.text else dataclasses.replace(self, text=text)

    def with_metadata(self, **found: Any) -> "Document":
        """The same document with more known of it."""
        other = dataclasses.replace(self, metadata={**self.metadata, **found})
        if other.language == self.language and "words" in self.__dict__:
            other.__dict__["words"] = self.words
        if "lines" in self.__dict__:
            other.__dict__["lines"] = self.lines
        return other


@dataclasses.dataclass(frozen=True)
class Rejected:
    """A document that a step turned away.

    Attributes:
        document: as it came to the step.
        reason: why, in a few words that are the same for all documents with that fault; reports
            count by it.
        score: the number that decided, if one did.
        step: the step's name; `clean` fills it in.
    """

    document: Document
    reason: str
    score: float | None = None
    step: str = ""


# A step is a pure function of one document. Those with settings are frozen dataclasses with
# `__call__`; those that compare documents are given what they compare with.
Step = Callable[[Document], Document | Rejected]


def name_of(step: Step) -> str:
    """What a step is called in reports: its `name`, or that of its function or class."""
    name = getattr(step, "name", "") or getattr(step, "__name__", "")
    return str(name or type(step).__name__)


def clean(document: Document, steps: Iterable[Step]) -> Document | Rejected:
    """Takes a document through steps, in order, until one turns it away.

    The textbook's `clean_text_data`. Usable alone:

        clean(Document("Some text."), [Repair(), Language(("en",)), GopherQuality()])

    Args:
        document: what to clean.
        steps: pure functions of one document.

    Returns:
        The document as the last step left it, or the step's `Rejected` with that step's name.
    """
    for step in steps:
        result = step(document)
        if isinstance(result, Rejected):
            return dataclasses.replace(result, step=result.step or name_of(step))
        document = result
    return document
