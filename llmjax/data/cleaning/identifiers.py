"""E-mail addresses, phone numbers and IP addresses in texts, by presidio's recognisers.

A recogniser is shown only the surroundings of what all that it finds has in it ("@", seven
digits), so a text without costs next to nothing. None needs a language model, none downloads
anything.
"""

import dataclasses
import functools
import ipaddress
import re
from collections.abc import Callable, Iterator
from typing import Any

from llmjax.data.cleaning.extra import needs

Span = tuple[int, int]

# How far before a number a word must stand that says what it is.
_CONTEXT = 60
_PHONE_WORDS = re.compile(
    r"phone|\btel|\bfax|\bcell\b|mobile|\bcall\b|contact|dial|whatsapp|handy|fon\b|numéro",
    re.IGNORECASE,
)


@dataclasses.dataclass(frozen=True)
class Recognisers:
    """Recognisers of presidio, run where the text may have something of their kind.

    Attributes:
        trigger: what everything that is found has in it.
        margin: how many characters it may reach beyond that.
        make: makes those of presidio, once.
        accepts: whether to take what one found, by (recogniser, text, start, end).
    """

    trigger: re.Pattern[str]
    margin: int
    make: Callable[[], tuple[Any, ...]]
    accepts: Callable[[Any, str, int, int], bool] = lambda *_: True

    def __call__(self, text: str) -> Iterator[Span]:
        """Where they stand in the text."""
        for start, end in _windows(text, self.trigger, self.margin):
            window = text[start:end]
            for recogniser in self.make():
                for found in recogniser.analyze(window, recogniser.supported_entities, None):
                    span = start + found.start, start + found.end
                    if self.accepts(recogniser, text, *span):
                        yield span


def _windows(text: str, trigger: re.Pattern[str], margin: int) -> Iterator[Span]:
    """The surroundings of all triggers; where they touch, as one."""
    start = end = 0
    for match in trigger.finditer(text):
        left = _outward(text, max(match.start() - margin, 0), -1)
        if left > end:
            if end:
                yield start, end
            start = left
        end = _outward(text, min(match.end() + margin, len(text)), 1)
    if end:
        yield start, end


def _outward(text: str, at: int, direction: int) -> int:
    """The next place in a direction that does not part letters and digits, 64 characters away."""
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
    # The list of domains that comes with the package; the default would download another.
    extract = tldextract.TLDExtract(suffix_list_urls=(), cache_dir=None)

    class Emails(EmailRecognizer):
        """With a check of the domain that stays offline."""

        def validate_result(self, pattern_text: str) -> bool:
            """Whether the domain ends in one that people can register under."""
            return bool(extract(pattern_text).top_domain_under_public_suffix)

    return (Emails(),)


@functools.lru_cache
def _phones() -> tuple[Any, ...]:
    with needs("presidio-analyzer"):
        from presidio_analyzer.predefined_recognizers import PhoneRecognizer
    return (PhoneRecognizer(),)


def _is_phone(_: Any, text: str, start: int, end: int) -> bool:
    """A number that is written as one, or that a word announces."""
    written = re.search(r"[+() ./-]", text[start:end])
    return bool(written or _PHONE_WORDS.search(text, max(0, start - _CONTEXT), start))


@functools.lru_cache
def _addresses() -> tuple[Any, ...]:
    with needs("presidio-analyzer"):
        from presidio_analyzer.predefined_recognizers import IpRecognizer
    return (IpRecognizer(),)


def _is_public(_: Any, text: str, start: int, end: int) -> bool:
    """An address that the world can reach; private ones stand for nobody, nor do versions."""
    try:
        address = ipaddress.ip_interface(text[start:end]).ip
    except ValueError:
        return False
    version = re.search(r"(?:\bv|version|release)\W{0,2}$", text[max(0, start - 12) : start], re.I)
    return address.is_global and not address.is_reserved and not version


# Domains have at most 253 characters and local parts 64 (RFC 5321, section 4.5.3.1).
emails = Recognisers(re.compile("@"), 256, _emails)
# Up to four marks may stand between digits, as in libphonenumber's matcher.
phones = Recognisers(re.compile(r"\d(?:[^\w\n]{0,4}\d){6,}"), 32, _phones, _is_phone)
addresses = Recognisers(
    re.compile(r"\d\.\d{1,3}\.\d{1,3}\.\d|[0-9A-Fa-f]:[0-9A-Fa-f]{0,4}:"), 48, _addresses, _is_public
)
