"""Synthetic personal data that follow their issuers' published rules, and carrier sentences."""

import base64
import json
import random
import string
from collections.abc import Callable, Mapping

UPPER, DIGITS = string.ascii_uppercase, string.digits
BASE62 = string.ascii_letters + DIGITS


def planted(draw: random.Random) -> Mapping[str, Callable[[], str]]:
    """Makers of sentences by kind; each sentence has one value, between null characters."""
    return {
        "email": lambda: email(draw),
        "phone": lambda: phone(draw),
        "card": lambda: card(draw),
        "iban": lambda: iban(draw),
        "national_id": lambda: draw.choice(NATIONAL)(draw),
        "ip": lambda: address(draw),
        "key": lambda: draw.choice(KEYS)(draw),
    }


def signs(draw: random.Random, alphabet: str, count: int) -> str:
    """Random characters."""
    return "".join(draw.choices(alphabet, k=count))


def email(draw: random.Random) -> str:
    """An address under one of several top-level domains."""
    local = draw.choice(["{a}.{b}", "{a}_{b}", "{a}+{b}", "{a}{n}", "o'{b}", "{a}-{b}.{n}"])
    name = local.format(
        a=draw.choice(["anna", "j", "Mary", "li", "josé"]),
        b=draw.choice(["smith", "Müller", "okafor", "tanaka", "x"]),
        n=draw.randrange(1, 2000),
    )
    domain = draw.choice(["gmail.com", "uni-bonn.de", "mail.ac.uk", "a.co", "corp.com.br", "x.org"])
    form = draw.choice(["Write to {}.", "<{}>", "mailto:{}", "E-mail: {}, or call.", "({})", "{}"])
    return form.format(f"\0{name}@{domain}\0")


def phone(draw: random.Random) -> str:
    """A valid number of some country, in national or international notation."""
    import phonenumbers

    national = draw.random() < 0.5
    regions = (
        ["US", "GB", "DE", "FR", "IN", "CA", "BR"] if national else phonenumbers.SUPPORTED_REGIONS
    )
    while True:
        example = phonenumbers.example_number_for_type(
            draw.choice(sorted(regions)),
            draw.choice(
                [phonenumbers.PhoneNumberType.MOBILE, phonenumbers.PhoneNumberType.FIXED_LINE]
            ),
        )
        if example is None:
            continue
        example.national_number = (example.national_number or 0) + draw.randrange(1000)
        if phonenumbers.is_valid_number(example):
            break
    style = phonenumbers.PhoneNumberFormat
    number = phonenumbers.format_number(
        example, style.NATIONAL if national else style.INTERNATIONAL
    )
    form = draw.choice(
        ["Call {}.", "Tel. {}", "Phone: {}", "My number is {}, ask for Jo.", "Fax {}"]
    )
    return form.format(f"\0{number}\0")


def luhn_digit(digits: str) -> str:
    """The check digit of Luhn's algorithm."""
    table = "0246813579"
    total = sum(int(table[int(d)]) if i % 2 == 0 else int(d) for i, d in enumerate(digits[::-1]))
    return str(-total % 10)


def card(draw: random.Random) -> str:
    """A card number of one of six networks, with or without grouping."""
    prefix, length = draw.choice(
        [("4", 16), ("4", 13), ("4", 19), ("53", 16), ("2221", 16), ("37", 15), ("6011", 16),
         ("3530", 16), ("36", 14), ("62", 16), ("6304", 12)]
    )  # fmt: skip
    digits = prefix + signs(draw, DIGITS, length - len(prefix) - 1)
    digits += luhn_digit(digits)
    sizes = [4, 6, 5] if length == 15 else [4] * 5
    separator = draw.choice(["", " ", "-"])
    groups, start = [], 0
    for size in sizes:
        groups.append(digits[start : start + size])
        start += size
    number = separator.join(group for group in groups if group)
    form = draw.choice(
        ["Card {}, expires 04/29.", "Pay with {} today", "visa {}", "No. 17: {} (new)"]
    )
    return form.format(f"\0{number}\0")


def iban(draw: random.Random) -> str:
    """An IBAN of one of eight countries, with or without grouping, in upper or lower case."""
    country, form = draw.choice(
        [("DE", "d" * 18), ("GB", "aaaa" + "d" * 14), ("FR", "d" * 10 + "c" * 11 + "dd"),
         ("NL", "aaaa" + "d" * 10), ("NO", "d" * 11), ("MT", "aaaa" + "d" * 5 + "c" * 18),
         ("CH", "d" * 5 + "c" * 12), ("ES", "d" * 20)]
    )  # fmt: skip
    alphabets = {"d": DIGITS, "a": UPPER, "c": UPPER + DIGITS}
    account = "".join(draw.choice(alphabets[kind]) for kind in form)
    number = "".join(
        str(DIGITS.find(s) if s in DIGITS else UPPER.find(s) + 10) for s in account + country
    )
    whole = f"{country}{98 - int(number + '00') % 97:02}{account}"
    if draw.random() < 0.5:
        whole = " ".join(whole[i : i + 4] for i in range(0, len(whole), 4))
    if draw.random() < 0.2:
        whole = whole.lower()
    return draw.choice(["IBAN: {}", "Transfer it to {}.", "({}), BIC XXXX"]).format(f"\0{whole}\0")


def address(draw: random.Random) -> str:
    """A public IPv4 or IPv6 address."""
    if draw.random() < 0.3:
        value = "2001:4860:" + ":".join(f"{draw.randrange(1, 65536):x}" for _ in range(6))
    else:
        value = f"{draw.choice([8, 24, 63, 81, 202, 217])}." + ".".join(
            str(draw.randrange(1, 255)) for _ in range(3)
        )
    form = draw.choice(["from [{}]", "at {}.", "host {}, port 25", "ssh root@{}", "http://{}/x"])
    return form.format(f"\0{value}\0")


def _ssn(draw: random.Random) -> str:
    value = f"{draw.randrange(1, 660):03}-{draw.randrange(1, 100):02}-{draw.randrange(1, 9999):04}"
    return f"SSN \0{value}\0"


def _nino(draw: random.Random) -> str:
    pair = draw.choice(["AB", "CE", "JG", "PR", "SX", "WM"])
    parts = [signs(draw, DIGITS, 2) for _ in range(3)]
    return "NI number \0" + draw.choice(["", " "]).join([pair, *parts, draw.choice("ABCD")]) + "\0."


def _nif(draw: random.Random) -> str:
    number = draw.randrange(10**7, 10**8)
    return f"DNI \0{number}{'TRWAGMYFPDXBNJZSQVHLCKE'[number % 23]}\0"


def _hetu(draw: random.Random) -> str:
    date = f"{draw.randrange(1, 29):02}{draw.randrange(1, 13):02}{draw.randrange(100):02}"
    number = f"{draw.randrange(2, 900):03}"
    check = "0123456789ABCDEFHJKLMNPRSTUVWXY"[int(date + number) % 31]
    return f"hetu \0{date}{draw.choice('-A')}{number}{check}\0"


def _personnummer(draw: random.Random) -> str:
    digits = f"{draw.randrange(30, 99)}{draw.randrange(1, 13):02}{draw.randrange(1, 29):02}"
    digits += signs(draw, DIGITS, 3)
    digits += luhn_digit(digits)
    return f"personnummer \0{digits[:6]}-{digits[6:]}\0"


def _pesel(draw: random.Random) -> str:
    digits = f"{draw.randrange(100):02}{draw.randrange(1, 13):02}{draw.randrange(1, 29):02}"
    digits += signs(draw, DIGITS, 4)
    total = sum(w * int(d) for w, d in zip((1, 3, 7, 9, 1, 3, 7, 9, 1, 3), digits, strict=True))
    return f"PESEL: \0{digits}{-total % 10}\0"


def _nhs(draw: random.Random) -> str:
    while True:
        digits = signs(draw, DIGITS, 9)
        check = -sum(w * int(d) for w, d in zip(range(10, 1, -1), digits, strict=True)) % 11
        if check < 10:
            return f"NHS number \0{digits[:3]} {digits[3:6]} {digits[6:]}{check}\0"


def _nir(draw: random.Random) -> str:
    digits = draw.choice("12") + f"{draw.randrange(100):02}{draw.randrange(1, 13):02}"
    digits += f"{draw.randrange(1, 95):02}{draw.randrange(1, 1000):03}{draw.randrange(1, 1000):03}"
    return f"n° de sécu \0{digits}{97 - int(digits) % 97:02}\0"


def _cpf(draw: random.Random) -> str:
    digits = signs(draw, DIGITS, 9)
    for n in (10, 11):
        left = sum(w * int(d) for w, d in zip(range(n, 1, -1), digits, strict=True)) % 11
        digits += str(0 if left < 2 else 11 - left)
    return f"CPF \0{digits[:3]}.{digits[3:6]}.{digits[6:9]}-{digits[9:]}\0"


NATIONAL = (_ssn, _nino, _nif, _hetu, _personnummer, _pesel, _nhs, _nir, _cpf)


def _github(draw: random.Random) -> str:
    return f"export GH=\0{draw.choice(['ghp', 'gho', 'ghs'])}_{signs(draw, BASE62, 36)}\0"


def _aws(draw: random.Random) -> str:
    return f"aws_access_key_id = \0AKIA{signs(draw, UPPER + '234567', 16)}\0"


def _slack(draw: random.Random) -> str:
    numbers = "-".join(signs(draw, DIGITS, 12) for _ in range(2))
    return f"slack: \0xoxb-{numbers}-{signs(draw, BASE62, 24)}\0"


def _jwt(draw: random.Random) -> str:
    parts = [{"alg": "HS256", "typ": "JWT"}, {"sub": signs(draw, DIGITS, 10), "admin": True}]
    coded = [base64.urlsafe_b64encode(json.dumps(part).encode()) for part in parts]
    coded.append(base64.urlsafe_b64encode(draw.randbytes(32)))
    return "Authorization: \0" + ".".join(part.decode().rstrip("=") for part in coded) + "\0"


def _pem(draw: random.Random) -> str:
    body = base64.encodebytes(draw.randbytes(300)).decode().strip()
    kind = draw.choice(["RSA ", "EC ", "OPENSSH ", ""])
    return f"\n\0-----BEGIN {kind}PRIVATE KEY-----\n{body}\n-----END {kind}PRIVATE KEY-----\0\n"


def _named(draw: random.Random) -> str:
    name = draw.choice(["api_key", "API-KEY", "client_secret", "access_token", "apiKey"])
    form = draw.choice(['{}: "\0{}\0"', "{}=\0{}\0", "'{}' => '\0{}\0'"])
    while True:
        value = signs(draw, BASE62, draw.randrange(24, 48))
        if any(sign in DIGITS for sign in value):
            return form.format(name, value)


KEYS = (_github, _aws, _slack, _jwt, _pem, _named)


def harmless(draw: random.Random) -> str:
    """A sentence with numbers and names that are not personal data."""
    digits = signs(draw, "123456789", 1) + signs(draw, DIGITS, 9)
    commit = signs(draw, "0123456789abcdef", 40)
    d, c = digits, commit
    return draw.choice(
        [
            f"Version {d[0]}.{d[1:3]}.{d[3]}.{d[4:6]} of 20{d[:2]}-0{d[0]}-12.",
            f"Bug #{d[:6]} was closed in commit {c}.",
            f"ISBN 978-{d[0]}-{d[:2]}-{d[2:8]}-{d[8]}, pages {d[:3]}-{d[3:6]}.",
            f"At 10:{d[:2]}:{d[2:4]} it had {d[:3]},{d[3:6]} kB, md5 {c[:32]}.",
            f"uuid {c[:8]}-{c[8:12]}-4{c[12:15]}-a{c[15:18]}-{c[18:30]}",
            f"Listen on 192.168.{d[0]}.{d[1]} and 127.0.0.1, see @param and std::vector.",
            f"The population rose from {d[:7]} in 1998-2002 to {d[2:9]}.",
            f"Order {d[:8]} costs 1,{d[:3]}.99 EUR (RFC {d[:4]}, ISO 8859-15).",
            f"mac 00:{d[:2]}:{d[2:4]}:af:{d[4:6]}:1c, token ring, key = value, x = {d}",
        ]
    )
