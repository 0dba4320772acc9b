"""Finds payment card and bank account numbers in texts, by their checksums.

presidio's recognisers miss numbers that a checksum identifies (cards of 19 digits and Mastercard's
second range, cards next to other numbers, IBANs in lower case), so these are our own.
"""

import functools
import re
from collections.abc import Iterator, Sequence

from llmjax.data.cleaning import checksums

# As typed and as typeset.
_SPACE = "[ \u00a0\u2009\u202f\u2010\u2011-]"
_NUMBERS = re.compile(rf"(?<!\w)(?<!\d\.)\d+(?:{_SPACE}\d+)*(?!\w)")
_MOST_DIGITS = 19
_LEAST_DIGITS = 12

_IBAN = re.compile(rf"(?<![A-Za-z0-9])[A-Za-z]{{2}}\d{{2}}(?={_SPACE}?[A-Za-z0-9])")


def cards(text: str) -> Iterator[tuple[int, int]]:
    """Spans of payment cards in a text, also next to other numbers.

    If two readings of the same digits are cards, the span covers all of these digits.
    """
    for match in _NUMBERS.finditer(text):
        if match.end() - match.start() < _LEAST_DIGITS:
            continue
        groups = [group.span() for group in re.finditer(r"\d+", match.group())]
        start = end = 0
        for first, last in _cards(match.group(), groups):
            if first > end:
                if end:
                    yield match.start() + start, match.start() + end
                start = first
            end = max(end, last)
        if end:
            yield match.start() + start, match.start() + end


def _cards(text: str, groups: Sequence[tuple[int, int]]) -> Iterator[tuple[int, int]]:
    """(start, end) of all groups of digits that together are a card number, from the left."""
    for i, (start, _) in enumerate(groups):
        digits = ""
        for part in groups[i:]:
            digits += text[slice(*part)]
            if len(digits) > _MOST_DIGITS:
                break
            if checksums.card(digits):
                yield start, part[1]


def ibans(text: str) -> Iterator[tuple[int, int]]:
    """Spans of international bank account numbers in a text, in groups of any size."""
    for match in _IBAN.finditer(text):
        length = checksums.IBAN_LENGTHS.get(match.group()[:2].upper())
        whole = _signs(length).match(text, match.start()) if length else None
        if whole and checksums.iban(re.sub(_SPACE, "", whole.group())):
            yield whole.span()


@functools.lru_cache
def _signs(count: int) -> re.Pattern[str]:
    return re.compile(rf"[A-Za-z0-9](?:{_SPACE}?[A-Za-z0-9]){{{count - 1}}}(?![A-Za-z0-9])")
