"""Finds e-mail addresses, phone numbers and IP addresses in texts, with presidio's recognisers.

A recogniser only sees the surroundings of its trigger ("@", seven digits), which everything that it
finds contains, so a text without triggers costs next to nothing. No recogniser needs a language
model or a download.
"""

import dataclasses
import functools
import ipaddress
import re
from collections.abc import Callable, Iterator
from typing import Any

from llmjax.data.cleaning.extra import needs

Span = tuple[int, int]

# Maximum distance before a number of a word that identifies it.
_CONTEXT = 60
_PHONE_WORDS = re.compile(
    r"phone|\btel|\bfax|\bcell\b|mobile|\bcall\b|contact|dial|whatsapp|handy|fon\b|numéro",
    re.IGNORECASE,
)


@dataclasses.dataclass(frozen=True)
class Recognisers:
    """presidio's recognisers, run only where the text may contain a match.

    Attributes:
        trigger: matches a part of everything that is found.
        margin: maximum characters of a match beyond the trigger.
        make: creates presidio's recognisers; called once.
        accepts: whether to accept a match, by (recogniser, text, start, end).
        longest: a longer trigger is a table of numbers, and skipped.
        one: whether to stop after the first recogniser with a match.
    """

    trigger: re.Pattern[str]
    margin: int
    make: Callable[[], tuple[Any, ...]]
    accepts: Callable[[Any, str, int, int], bool] = lambda *_: True
    longest: int = 200
    one: bool = False

    def __call__(self, text: str) -> Iterator[Span]:
        """Spans of accepted matches."""
        for match in self.trigger.finditer(text):
            if match.end() - match.start() <= self.longest:
                yield from self._at(text, match.start(), match.end())

    def _at(self, text: str, start: int, end: int) -> Iterator[Span]:
        first = _outward(text, max(start - self.margin, 0), -1)
        window = text[first : _outward(text, min(end + self.margin, len(text)), 1)]
        for recogniser in self.make():
            found = recogniser.analyze(window, recogniser.supported_entities, None)
            spans = [(first + item.start, first + item.end) for item in found]
            there = [(a, b) for a, b in spans if a < end and b > start]
            accepted = [span for span in there if self.accepts(recogniser, text, *span)]
            yield from accepted
            if accepted and self.one:
                return


def _outward(text: str, at: int, direction: int) -> int:
    """The next position in a direction that splits no word or number, at most 64 away."""
    for _ in range(64):
        if not 0 < at < len(text) or not (text[at - 1].isalnum() and text[at].isalnum()):
            break
        at += direction
    return at


@functools.lru_cache
def _emails() -> tuple[Any, ...]:
    with needs("presidio-analyzer"):
        import tldextract
        from presidio_analyzer.predefined_recognizers import EmailRecognizer
    # Uses the package's own list of domains; the default would download another.
    extract = tldextract.TLDExtract(suffix_list_urls=(), cache_dir=None)

    class Emails(EmailRecognizer):
        """A recogniser that validates the domain offline."""

        def validate_result(self, pattern_text: str) -> bool:
            """Whether the domain is below a public suffix."""
            domain = pattern_text.rpartition("@")[2]
            return bool(extract(domain).top_domain_under_public_suffix)

    return (Emails(),)


@functools.lru_cache
def _phones() -> tuple[Any, ...]:
    with needs("presidio-analyzer"):
        from presidio_analyzer.predefined_recognizers import PhoneRecognizer
    regions = PhoneRecognizer.DEFAULT_SUPPORTED_REGIONS
    return tuple(PhoneRecognizer(supported_regions=(region,)) for region in regions)


# Dotted quads are IP addresses or versions (but 1.800.555.1234 is not), "3.14159265" is a number,
# "04 -0700" is a time with its zone, and "1 2 3 4 5 6 7" counts, as pages of results do.
_NOT_A_PHONE = re.compile(
    r"\D*(?:(?!1\.\d{3}\.)\d{1,3}(?:\.\d{1,4}){3}|\d(?:\.\d+){4}|\d{1,2}\.\d{5,}|(?:\d\D*){1,6})\D*"
    r"|(?:.*\D)?\d(?: \d){3}(?:\D.*)?"
)
_INSIDE_BEFORE = re.compile(r"(?:\w[-_/]|\d[.:])")
_INSIDE_AFTER = re.compile(r"[-_/:]\w|\.[a-z\d]")


def _is_phone(_: Any, text: str, start: int, end: int) -> bool:
    """A number written or announced as a phone number, and not part of a name or time."""
    number = text[start:end]
    if _NOT_A_PHONE.fullmatch(number) or _INSIDE_AFTER.match(text, end):
        return False
    if _INSIDE_BEFORE.match(text, max(start - 2, 0), start):
        return False
    announced = _PHONE_WORDS.search(text, max(0, start - _CONTEXT), start)
    return bool(announced or re.search(r"[+() ./-]", number))


@functools.lru_cache
def _addresses() -> tuple[Any, ...]:
    with needs("presidio-analyzer"):
        from presidio_analyzer.predefined_recognizers import IpRecognizer
    return (IpRecognizer(),)


def _is_public(_: Any, text: str, start: int, end: int) -> bool:
    """A globally reachable address; private addresses identify nobody, nor do version numbers."""
    try:
        address = ipaddress.ip_interface(text[start:end]).ip
    except ValueError:
        return False
    version = re.search(r"(?:\bv|version|release)\W{0,2}$", text[max(0, start - 12) : start], re.I)
    return address.is_global and not address.is_reserved and not version


def _is_persons(_: Any, text: str, start: int, end: int) -> bool:
    """Not the address of a repository, such as git@host:name."""
    return not (text.startswith("git@", start) and re.match(r":\w", text[end : end + 2]))


# Domains have at most 253 characters and local parts 64 (RFC 5321, section 4.5.3.1).
emails = Recognisers(re.compile("@"), 256, _emails, _is_persons)
# libphonenumber allows up to four of these marks between digits. Excludes IP addresses and dates.
_MARKS = (
    r"[-x\u2010-\u2015\u2212\u30fc\uff0d-\uff0f \u00a0\u00ad\u200b\u2060\u3000()\[\].~\uff08\uff09]"
)
phones = Recognisers(
    re.compile(
        r"(?<![A-Za-z\d])(?<!\d\.)(?!\d{1,3}(?:\.\d{1,3}){3}(?![\d.]))"
        rf"(?!(?:19|20)\d\d-\d\d-\d\d(?!\d))\d(?:{_MARKS}{{0,4}}\d){{6,}}"
    ),
    16,
    _phones,
    _is_phone,
    one=True,
)
addresses = Recognisers(
    re.compile(r"\d\.\d{1,3}\.\d{1,3}\.\d|[0-9A-Fa-f]:[0-9A-Fa-f]{0,4}:"),
    48,
    _addresses,
    _is_public,
)
