"""Text as it was meant: what went wrong with encodings and control characters is put right."""

import dataclasses
import functools
import re
from typing import Any, ClassVar, Literal

from llmjax.checks import require_choices
from llmjax.data.cleaning.document import Document
from llmjax.data.cleaning.extra import needs

# ASCII that is sure to be meant as it stands: printable, tabs, line and page feeds, no reference.
_SOUND = re.compile(r"[\t\n\f\x20-\x7e]*")


@dataclasses.dataclass(frozen=True)
class Repair:
    r"""Repairs a text by ftfy (Speer 2019, "ftfy", doi:10.5281/zenodo.2591652), and no more.

    Mojibake, bytes that were read in a wrong encoding, becomes what it was; halves of surrogates
    are joined or marked; control characters and escapes of terminals go; line ends are "\n"; the
    text is in one normal form of Unicode. What a writer may have meant stays: quotes, ligatures,
    wide letters, and references such as "&amp;" unless `references` is on. Source code comes out as
    it went in.

    Attributes:
        normalization: the normal form. "NFKC" also levels out wide letters, ligatures and
            superscripts, "none" changes nothing.
        references: read HTML's references in texts without tags: "&amp;" becomes "&".
        plain_quotes: make curly quotes straight.
    """

    name: ClassVar[str] = "repair"

    normalization: Literal["NFC", "NFKC", "none"] = "NFC"
    references: bool = False
    plain_quotes: bool = False

    def __post_init__(self) -> None:
        require_choices(self, self.name)

    def __call__(self, document: Document) -> Document:
        """The document, repaired."""
        text = document.text
        if _SOUND.fullmatch(text) and not (self.references and "&" in text):
            return document
        ftfy, config = _repairs(self)
        return document.with_text(ftfy.fix_text(text, config))


@functools.lru_cache
def _repairs(step: Repair) -> tuple[Any, Any]:
    with needs("ftfy"):
        import ftfy
    config = ftfy.TextFixerConfig(
        unescape_html="auto" if step.references else False,
        uncurl_quotes=step.plain_quotes,
        fix_latin_ligatures=False,
        fix_character_width=False,
        normalization=None if step.normalization == "none" else step.normalization,
        explain=False,
    )
    return ftfy, config
