"""Check digits against numbers that their issuers and standards publish as examples."""

import itertools
import random

import pytest

from llmjax.data.cleaning import checksums

# Test numbers of the networks, as payment services publish them.
CARDS = (
    *("4111111111111111", "4012888888881881", "4222222222222", "5555555555554444"),
    *("5105105105105100", "2223003122003222", "378282246310005", "371449635398431"),
    *("6011111111111117", "6011000990139424", "3530111333300000", "3566002020360505"),
    *("30569309025904", "38520000023237", "6200000000000005", "6304000000000000"),
)
# The examples of SWIFT's registry of IBAN formats.
IBANS = (
    *("GB29NWBK60161331926819", "DE89370400440532013000", "FR1420041010050500013M02606"),
    *("NL91ABNA0417164300", "NO9386011117947", "MT84MALT011000012345MTLCAST001S"),
    *("CH9300762011623852957", "ES9121000418450200051332", "BR1800360305000010009795493C1"),
    *("SC18SSCB11010000000000001497USD", "PL61109010140000071219812874", "BE68539007547034"),
    *("IT60X0542811101000000123456", "SA0380000000608010167519", "TR330006100519786457841326"),
)


def test_luhn_is_that_of_the_standard() -> None:
    assert checksums.luhn("79927398713")
    assert [d for d in range(10) if checksums.luhn(f"7992739871{d}")] == [3]


@pytest.mark.parametrize("number", CARDS)
def test_cards(number: str) -> None:
    assert checksums.card(number)


@pytest.mark.parametrize("number", IBANS)
def test_ibans(number: str) -> None:
    assert checksums.iban(number)
    assert checksums.iban(number.lower())


@pytest.mark.parametrize(("sound", "check"), [(CARDS[0], "card"), (IBANS[0], "iban")])
def test_an_exchanged_digit_is_never_sound(sound: str, check: str) -> None:
    """What both checks are made for: every error of one digit."""
    for at, digit in itertools.product(range(4, len(sound)), "0123456789"):
        if sound[at].isdigit() and digit != sound[at]:
            assert not getattr(checksums, check)(sound[:at] + digit + sound[at + 1 :])


def test_the_share_of_random_numbers_that_are_sound() -> None:
    draw = random.Random(0)
    numbers = [f"{draw.randrange(10**16):016}" for _ in range(5000)]
    # Of n draws of chance p, within four standard deviations.
    assert abs(sum(map(checksums.luhn, numbers)) - 500) < 4 * (5000 * 0.1 * 0.9) ** 0.5
    accounts = [f"GB{draw.randrange(100):02}NWBK{draw.randrange(10**14):014}" for _ in range(5000)]
    assert abs(sum(map(checksums.iban, accounts)) - 5000 / 97) < 4 * (5000 / 97) ** 0.5


def test_numbers_of_states() -> None:
    # Examples of the French and Corsican number, of Brazil's tax office and of the Dutch state.
    assert checksums.nir("255081416802538")
    assert checksums.nir("253072B07300470")
    assert not checksums.nir("255081416802539")
    assert checksums.cpf("52998224725")
    assert not checksums.cpf("52998224724")
    assert not checksums.cpf("11111111111")
    assert checksums.bsn("111222333")
    assert not checksums.bsn("111222334")
