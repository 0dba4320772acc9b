"""Finds sentence boundaries."""

import re

# A final mark with closing quotes or brackets, and space before a new sentence; or a line end.
_BREAK = re.compile(r"""(?<=[.!?])(?P<closing>["'”’)\]]*)\s+(?=["'“‘(\[]?[A-Z0-9])|\s*\n\s*""")
_SHORT = re.compile(
    r"""(?:^|[\s("'])(?:[A-Z]|Mr|Mrs|Ms|Dr|Prof|St|Jr|Sr|vs|No|cf|e\.g|i\.e|U\.S)\.$"""
)


def spans(text: str) -> list[tuple[int, int]]:
    """Start and end of each sentence; only white space lies between them."""
    found, start = [], len(text) - len(text.lstrip())
    for match in _BREAK.finditer(text):
        end = match.end("closing") if match["closing"] is not None else match.start()
        if start < end and not _SHORT.search(text[start:end]):
            found.append((start, end))
            start = match.end()
    end = len(text.rstrip())
    return [*found, (start, end)] if start < end else found
