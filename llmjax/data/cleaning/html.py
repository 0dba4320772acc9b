"""Extracts the main text of web pages, without menus, banners and scripts.

Barbaresi 2021, "Trafilatura: A Web Scraping Library and Command-Line Tool for Text Discovery and
Extraction" (ACL demos, 2021.acl-demo.15), with limits that keep hostile pages from costing more
than a large one.
"""

import dataclasses
import functools
import math
import re
from collections.abc import Iterator, Mapping
from typing import Any, ClassVar

from llmjax.data.cleaning.document import Document, Rejected
from llmjax.data.cleaning.extra import needs
from llmjax.data.cleaning.rules import Rule, judge, require_ranges

# The beginning of a page that identifies it as HTML. All patterns here take linear time.
_PAGE = re.compile(
    r"\s*+(?:<\?xml[^>]*+>\s*+)?+(?:<!--(?>.*?-->)\s*+)*+<(?:!doctype\s+html|html|head|body)\b",
    re.IGNORECASE | re.DOTALL,
)
_BEGINNING = 10_000
# Only dates that a page states; and the result must not depend on the current date.
_DATES = {"original_date": True, "extensive_search": False, "max_date": "2100-01-01"}
# A shorter tag has few attributes.
_FEW_ATTRIBUTES = 256
# An attribute's value, quoted or not, and a tag with all its attributes.
_VALUE = r"""=\s*+(?:"[^"]*+"|'[^']*+'|[^\s>"'][^\s>]*+)?+"""
_TAG = re.compile(rf"<[a-zA-Z](?:[^=>]++|{_VALUE})*+")


@dataclasses.dataclass(frozen=True)
class Html:
    """Extracts a page's main text, and its metadata `title` and `published` (a date).

    Documents that are not HTML pass: a page has `format="html"` in its metadata, or identifies
    itself as HTML. Afterwards its format is `text`.

    Attributes:
        precision: drop doubtful text; otherwise keep it.
        tables: keep the text of tables.
        comments: keep readers' comments.
        max_characters: limit per page. Extraction takes about two seconds per million.
        max_elements: limit per page. Extraction takes about four seconds per ten thousand.
        max_depth: nesting of elements. The parser itself gives up at 256.
        max_attributes: limit per element. Parsers take quadratic time in these.
    """

    name: ClassVar[str] = "html"

    precision: bool = True
    tables: bool = True
    comments: bool = False
    max_characters: int = 2_000_000
    max_elements: int = 20_000
    max_depth: int = 200
    max_attributes: int = 1000

    def __post_init__(self) -> None:
        bounds = ("max_characters", "max_elements", "max_attributes")
        require_ranges(self, **dict.fromkeys(bounds, (1, math.inf)), max_depth=(1, 255))

    def __call__(self, document: Document) -> Document | Rejected:
        """The document with its main text, or the reason why there is none.

        Raises:
            ImportError: trafilatura is not installed.
        """
        if not self._is_page(document):
            return document
        page = _Page(document.text)
        judged = judge(document, self._rules(page))
        if isinstance(judged, Rejected):
            return judged
        found = page.extracted(self, document.metadata.get("url"))
        if found is None:
            return Rejected(document, "extraction failed")
        if not found.get("text"):
            return Rejected(document, "no main text")
        known = {"title": found.get("title"), "published": found.get("date"), "format": "text"}
        known = {name: value for name, value in known.items() if value}
        return document.with_text(found["text"]).with_metadata(**known)

    def _is_page(self, document: Document) -> bool:
        if said := document.metadata.get("format"):
            return said == "html"
        return _PAGE.match(document.text, 0, _BEGINNING) is not None

    def _rules(self, page: "_Page") -> Iterator[Rule]:
        length = len(page.html)
        yield "page too long", length, length > self.max_characters
        attributes = page.most_attributes
        yield "too many attributes", attributes, attributes > self.max_attributes
        yield "not HTML", 0.0, page.tree is None
        elements, depth = page.size
        yield "too many elements", elements, elements > self.max_elements
        yield "nested too deeply", depth, depth > self.max_depth


class _Page:
    """A page, parsed on first use."""

    def __init__(self, html: str) -> None:
        self.html = html

    @functools.cached_property
    def most_attributes(self) -> int:
        """Approximate maximum number of attributes of an element; found without parsing."""
        tags = (tag for tag in _TAG.findall(self.html) if len(tag) > _FEW_ATTRIBUTES)
        return max((len(re.split(r"[\s/]+", re.sub(_VALUE, " ", tag))) for tag in tags), default=0)

    @functools.cached_property
    def tree(self) -> Any:
        """lxml's tree, or None."""
        with needs("trafilatura"):
            import trafilatura
        try:
            return trafilatura.load_html(self.html)
        except (ValueError, AssertionError):
            return None

    @functools.cached_property
    def size(self) -> tuple[int, int]:
        """Number of elements, and maximum nesting depth."""
        count = deepest = 0
        waiting = [(self.tree, 1)]
        while waiting:
            element, depth = waiting.pop()
            count += 1
            deepest = max(deepest, depth)
            waiting.extend((child, depth + 1) for child in element)
        return count, deepest

    def extracted(self, step: Html, url: str | None) -> Mapping[str, Any] | None:
        """What trafilatura extracts, by its field names; None if it fails."""
        import trafilatura

        try:
            found = trafilatura.bare_extraction(
                self.tree,
                url=url,
                favor_precision=step.precision,
                include_tables=step.tables,
                include_comments=step.comments,
                with_metadata=True,
                date_extraction_params=dict(_DATES),
            )
        except Exception:  # A page that trips its heuristics must not stop the run.
            return None
        # An object since trafilatura 2.
        return found.as_dict() if hasattr(found, "as_dict") else found or {}
