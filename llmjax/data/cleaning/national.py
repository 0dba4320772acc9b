"""Finds national identification numbers of 20 countries in texts.

Most use presidio's recognisers, which validate check digits where they exist. Many ten-digit
numbers pass a check of one digit, so a number of digits alone is accepted only after a word that
identifies it ("SSN", "codice fiscale", "personnummer").
"""

import functools
import itertools
import re
from collections.abc import Iterator
from typing import Any

from llmjax.data.cleaning import checksums
from llmjax.data.cleaning.extra import needs
from llmjax.data.cleaning.identifiers import Recognisers

# Maximum distance of the word before a number.
_CONTEXT = 60

# presidio's recognisers, and the format that is accepted without a word before it.
_NEVER = r"(?!)"
_RECOGNISERS = {
    "AuTfnRecognizer": _NEVER,
    "CaSinRecognizer": _NEVER,
    "DeTaxIdRecognizer": _NEVER,
    "EsNieRecognizer": r"[XYZ]\d{7}-?[A-Z]",
    "EsNifRecognizer": r"\d{8}-?[A-Z]",
    "FiPersonalIdentityCodeRecognizer": r"\d{6}[-+A-FU-Y]\d{3}[0-9A-Y]",
    "InAadhaarRecognizer": _NEVER,
    "InPanRecognizer": r"[A-Z]{3}[ABCFGHJLPT][A-Z]\d{4}[A-Z]",
    "ItFiscalCodeRecognizer": r"[A-Z0-9]{16}",
    "KrRrnRecognizer": r"\d{6}-\d{7}",
    "NgNinRecognizer": _NEVER,
    "PlPeselRecognizer": _NEVER,
    "SePersonnummerRecognizer": r"(?:\d{2})?\d{6}[-+]\d{4}",
    "SgFinRecognizer": _NEVER,
    "ThTninRecognizer": _NEVER,
    "TrNationalIdRecognizer": _NEVER,
    "NhsRecognizer": _NEVER,
    "UkNinoRecognizer": r"[A-Z]{2} ?\d{2} ?\d{2} ?\d{2} ?[A-D]",
    "UsItinRecognizer": r"9\d{2}([- ])\d{2}\1\d{4}",
    "UsSsnRecognizer": r"\d{3}([- ])\d{2}\1\d{4}",
    "ZaIdNumberRecognizer": _NEVER,
}
# Words that apply to all countries.
_WORDS = ("national id", "identity number", "id number", "identification number", "tax id")

_NIR = re.compile(r"(?<!\w)[1-478] ?\d\d ?\d\d ?(?:\d\d|2[ABab]) ?\d{3} ?\d{3} ?\d\d(?!\w)")
_CPF = re.compile(r"(?<![\w.])\d{3}\.\d{3}\.\d{3}-\d\d(?!\w)")
_BSN = re.compile(r"(?:bsn|burgerservicenummer|sofinummer)\W{0,8}(?P<number>\d{9})(?!\w)", re.I)


@functools.lru_cache
def _recognisers() -> tuple[Any, ...]:
    with needs("presidio-analyzer"):
        from presidio_analyzer import predefined_recognizers
    return tuple(getattr(predefined_recognizers, name)() for name in _RECOGNISERS)


@functools.lru_cache
def _alone(name: str) -> re.Pattern[str]:
    return re.compile(_RECOGNISERS[name])


@functools.lru_cache
def _announced(name: str) -> re.Pattern[str]:
    """Matches the words that identify a recogniser's number."""
    recogniser = next(one for one in _recognisers() if type(one).__name__ == name)
    words = "|".join(map(re.escape, (*recogniser.context, *_WORDS)))
    return re.compile(rf"(?<!\w)(?:{words})(?!\w)", re.IGNORECASE)


def _accepts(recogniser: Any, text: str, start: int, end: int) -> bool:
    name = type(recogniser).__name__
    # After a country code it is a phone number.
    if "+" not in text[max(0, start - 5) : start] and _alone(name).fullmatch(text, start, end):
        return True
    return _announced(name).search(text, max(0, start - _CONTEXT), start) is not None


# Six digits with an optional mark and letter between them; or India's tax number; or an Italian
# code, which may have letters for digits. None is longer than 20 characters.
_CODE_DIGIT = r"[\dL-NP-V]"
_TRIGGER = re.compile(
    r"(?<!\w)[A-Za-z]{0,2}\d(?:[ \t\u00a0:._/+-]?[A-Za-z]?\d){5,}|\b(?i:[A-Z]{5}\d{4}[A-Z]"
    rf"|[A-Z]{{6}}{_CODE_DIGIT}{{2}}[A-Z]{_CODE_DIGIT}{{2}}[A-Z]{_CODE_DIGIT}{{3}}[A-Z])\b"
)
_presidio = Recognisers(_TRIGGER, 20, _recognisers, _accepts)


def ids(text: str) -> Iterator[tuple[int, int]]:
    """Spans of national numbers in a text, in no particular order."""
    if _TRIGGER.search(text) is None:
        return
    yield from _presidio(text)
    for match in _NIR.finditer(text):
        if checksums.nir(match.group().replace(" ", "")):
            yield match.span()
    for match in _CPF.finditer(text):
        if checksums.cpf("".join(itertools.filterfalse(".-".__contains__, match.group()))):
            yield match.span()
    for match in _BSN.finditer(text):
        if checksums.bsn(match["number"]):
            yield match.span("number")
