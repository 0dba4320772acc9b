"""Repairs text: wrong encodings and control characters."""

import dataclasses
import functools
import re
from typing import Any, ClassVar, Literal

from llmjax.checks import require_choices
from llmjax.data.cleaning.document import Document
from llmjax.data.cleaning.extra import needs

# ASCII that needs no repair: printable, tabs, line and page feeds.
_SOUND = re.compile(r"[\t\n\f\x20-\x7e]*")


@dataclasses.dataclass(frozen=True)
class Repair:
    r"""Repairs a text with ftfy (Speer 2019, "ftfy", doi:10.5281/zenodo.2591652), conservatively.

    It decodes mojibake (bytes read in a wrong encoding), joins or marks unpaired surrogates,
    removes control characters and terminal escapes, makes line ends "\n", and applies one Unicode
    normal form. What may be intended stays: quotes, ligatures, wide letters, and references such as
    "&amp;" unless `references` is on. Source code stays unchanged.

    Attributes:
        normalization: the normal form. "NFKC" also replaces wide letters, ligatures and
            superscripts; "none" changes nothing.
        references: decode HTML references in texts without tags: "&amp;" becomes "&".
        plain_quotes: straighten curly quotes.
    """

    name: ClassVar[str] = "repair"

    normalization: Literal["NFC", "NFKC", "none"] = "NFC"
    references: bool = False
    plain_quotes: bool = False

    def __post_init__(self) -> None:
        require_choices(self, self.name)

    def __call__(self, document: Document) -> Document:
        """The repaired document."""
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
