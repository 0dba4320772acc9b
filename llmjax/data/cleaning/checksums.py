"""Checksums of numbers that identify persons and their accounts.

Each function validates a number. A random number passes with a probability of one in ten (Luhn),
eleven or ninety-seven.
"""

import re

# Length of an IBAN by country (SWIFT's registry of IBAN formats, release 99).
_LENGTHS = """
    AD24 AE23 AL28 AT20 AZ28 BA20 BE16 BG22 BH22 BI27 BR29 BY28 CH21 CR22 CY28 CZ24 DE22 DJ27 DK18
    DO28 EE20 EG29 ES24 FI18 FK18 FO18 FR27 GB22 GE22 GI23 GL18 GR27 GT28 HN28 HR21 HU28 IE22 IL23
    IQ23 IS26 IT27 JO30 KW30 KZ20 LB28 LC32 LI21 LT20 LU20 LV21 LY25 MC27 MD24 ME22 MK19 MN20 MR27
    MT31 MU30 NI28 NL18 NO15 OM23 PK24 PL28 PS29 PT25 QA29 RO24 RS22 RU33 SA24 SC31 SD18 SE24 SI19
    SK24 SM27 SO23 ST25 SV28 TL23 TN24 TR26 UA29 VA22 VG24 XK20 YE30
"""
IBAN_LENGTHS = {code[:2]: int(code[2:]) for code in _LENGTHS.split()}

# Payment card numbers: prefixes and lengths (ISO/IEC 7812 and the networks' published ranges).
_CARDS = re.compile(
    r"4(?:\d{12}|\d{15}|\d{18})"  # Visa
    r"|5[1-5]\d{14}|222[1-9]\d{12}|22[3-9]\d{13}|2[3-6]\d{14}|27[01]\d{13}|2720\d{12}"  # Mastercard
    r"|3[47]\d{13}"  # American Express
    r"|(?:6011|64[4-9]\d|65\d\d)\d{12,15}"  # Discover
    r"|35(?:2[89]|[3-8]\d)\d{12,15}"  # JCB
    r"|3(?:0[0-5]|[68]\d|9\d)\d{11,16}"  # Diners Club
    r"|62\d{14,17}"  # UnionPay
    r"|220[0-4]\d{12,15}"  # Mir
    r"|(?:5018|5020|5038|5893|6304|6759|676[1-3])\d{8,15}"  # Maestro
)


def luhn(digits: str) -> bool:
    """Luhn's check digit (ISO/IEC 7812-1, annex B), used by cards and many national numbers."""
    doubled = (sum(divmod(2 * int(digit), 10)) for digit in digits[-2::-2])
    return (sum(map(int, digits[-1::-2])) + sum(doubled)) % 10 == 0


def card(digits: str) -> bool:
    """Whether this is a payment card number: a network's range and length, and Luhn's digit."""
    return _CARDS.fullmatch(digits) is not None and luhn(digits)


def iban(text: str) -> bool:
    """Whether this is an IBAN without spaces: the country's length, and ISO 7064's mod 97 check."""
    text = text.upper()
    if IBAN_LENGTHS.get(text[:2]) != len(text) or not text.isascii() or not text.isalnum():
        return False
    return int("".join(str(int(sign, 36)) for sign in text[4:] + text[:4])) % 97 == 1


def nir(text: str) -> bool:
    """The mod 97 key of a French social security number of 15 characters; 2A, 2B: Corsica."""
    number = text.upper().replace("2A", "19", 1).replace("2B", "18", 1)
    return (
        len(number) == 15 and number.isdecimal() and (int(number[:13]) + int(number[13:])) % 97 == 0
    )


def cpf(digits: str) -> bool:
    """Both mod 11 check digits of a Brazilian taxpayer number of 11 digits."""
    if len(digits) != 11 or len(set(digits)) == 1:
        return False
    numbers = [int(digit) for digit in digits]
    for n in (9, 10):
        total = sum(number * (n + 1 - i) for i, number in enumerate(numbers[:n]))
        if total * 10 % 11 % 10 != numbers[n]:
            return False
    return True


def bsn(digits: str) -> bool:
    """The elevens test of a Dutch citizen service number of 9 digits."""
    weights = (9, 8, 7, 6, 5, 4, 3, 2, -1)
    if len(digits) != 9 or digits == "0" * 9:
        return False
    return sum(w * int(digit) for w, digit in zip(weights, digits, strict=True)) % 11 == 0
