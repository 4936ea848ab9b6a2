"""Check digits of numbers that are given out: what tells one of them from any other number."""

from __future__ import annotations

import re

_NOT_DIGITS = re.compile("[^0-9]+")
_NOT_WRITTEN = re.compile("[^0-9A-Za-z]+")
# Digits doubled, with the digits of the result added: Luhn's table.
_DOUBLED = (0, 2, 4, 6, 8, 1, 3, 5, 7, 9)
_NIF = "TRWAGMYFPDXBNJZSQVHLCKE"
_FINNISH = "0123456789ABCDEFHJKLMNPRSTUVWXY"
# Codice fiscale: the values of characters in odd places.
_ODD = dict(zip("0123456789", (1, 0, 5, 7, 9, 13, 15, 17, 19, 21), strict=True)) | dict(
    zip(
        "ABCDEFGHIJKLMNOPQRSTUVWXYZ",
        (1, 0, 5, 7, 9, 13, 15, 17, 19, 21, 2, 4, 18, 20, 11, 3, 6, 8, 12, 14, 16, 10, 22, 25, 24, 23),
        strict=True,
    )
)
_VERHOEFF_STEPS = (
    "0123456789",
    "1234067895",
    "2340178956",
    "3401289567",
    "4012395678",
    "5987604321",
    "6598710432",
    "7659821043",
    "8765932104",
    "9876543210",
)
_VERHOEFF_TURNS = (
    "0123456789",
    "1576283094",
    "5803796142",
    "8916043527",
    "9453126870",
    "4286573901",
    "2793806415",
    "7046913258",
)
# How long the IBAN of each country is.
_IBAN = {
    country: int(length)
    for length, countries in {
        "15": "NO", "16": "BE BI", "18": "DK FK FI FO GL NL SD", "19": "MK SI", "20": "AT BA EE KZ LT LU MN XK",
        "21": "CH HR LI LV", "22": "BG BH CR DE GB GE IE ME RS VA", "23": "AE GI IL IQ OM SO TL",
        "24": "AD CZ ES MD PK RO SA SE SK TN VG", "25": "LY PT ST", "26": "IS TR",
        "27": "BF BJ CM DJ FR GR IT MC MR SM",
        "28": "AL AZ BY CI CY DO DZ GT HN HU LB MA ML NE NI PL SN SV TG", "29": "BR EG PS QA UA", "30": "JO KW MU YE",
        "31": "MT SC", "32": "LC", "33": "RU",
    }.items()
    for country in countries.split()
}  # fmt: skip


def digits_of(written: str) -> str:
    return _NOT_DIGITS.sub("", written)


def letters_of(written: str) -> str:
    """The digits and letters, as capitals."""
    return _NOT_WRITTEN.sub("", written).upper()


def luhn(digits: str) -> bool:
    """Payment cards, and the numbers of persons in some countries."""
    total = sum(map(int, digits[-1::-2])) + sum(_DOUBLED[int(digit)] for digit in digits[-2::-2])
    return total % 10 == 0


def card(written: str) -> bool:
    """A number that a payment network gives out: its first digits, its length and its check digit."""
    digits = digits_of(written)
    length, first = len(digits), int(digits[:4])
    if digits[0] == "4":
        known = length in (13, 16, 19)
    elif digits[:2] in ("34", "37"):
        known = length == 15
    elif 5100 <= first <= 5599 or 2221 <= first <= 2720:
        known = length == 16
    elif digits[:2] in ("36", "38", "39") or 3000 <= first <= 3059:
        known = 14 <= length <= 19
    elif (
        3528 <= first <= 3589 or digits[:2] in ("62", "64", "65", "81") or digits[:4] == "6011" or 2200 <= first <= 2204
    ):
        known = 16 <= length <= 19
    else:
        known = digits[:2] in ("50", "56", "57", "58", "63", "67", "69") and 12 <= length <= 19
    return known and len(set(digits)) > 1 and luhn(digits) and not row(written)


def row(written: str) -> bool:
    """Whether groups of digits are rather numbers that follow each other, such as years."""
    groups = written.replace("-", " ").split(" ")
    return len(groups) > 1 and len(groups[0]) > 1 and len({group[:2] for group in groups}) == 1


def iban_length(country: str) -> int:
    """How many characters an IBAN of this country has; 0 where it has none."""
    return _IBAN.get(country.upper(), 0)


def iban(written: str) -> bool:
    return int("".join(str(int(one, 36)) for one in written[4:] + written[:4])) % 97 == 1


def german_tax(digits: str) -> bool:
    """Steuer-Identifikationsnummer: one digit comes twice or three times in the first ten; ISO 7064, mod 11,10."""
    if digits[0] == "0" or len(set(digits[:10])) not in (8, 9):
        return False
    product = 10
    for digit in digits[:10]:
        total = (int(digit) + product) % 10 or 10
        product = total * 2 % 11
    return (11 - product) % 10 == int(digits[10])


def french_nir(written: str) -> bool:
    """Numéro de sécurité sociale; Corsica's departments 2A and 2B count as 19 and 18."""
    body = written[:13].replace("2A", "19").replace("2B", "18")
    return body.isdigit() and written[13:].isdigit() and 97 - int(body) % 97 == int(written[13:])


def spanish(written: str) -> bool:
    """DNI and NIE."""
    number = written[:-1].translate({ord("X"): "0", ord("Y"): "1", ord("Z"): "2"})
    return number.isdigit() and _NIF[int(number) % 23] == written[-1]


def italian(written: str) -> bool:
    """Codice fiscale."""
    total = sum(_ODD[one] for one in written[0:15:2])
    total += sum(int(one) if one.isdigit() else ord(one) - 65 for one in written[1:15:2])
    return chr(65 + total % 26) == written[15]


def dutch(digits: str) -> bool:
    """BSN: the test of eleven."""
    total = sum((9 - place) * int(digit) for place, digit in enumerate(digits[:8])) - int(digits[8])
    return total % 11 == 0 and int(digits) != 0


def belgian(digits: str) -> bool:
    """Rijksregisternummer, born before 2000 or since."""
    check = int(digits[9:])
    return check in (97 - int(digits[:9]) % 97, 97 - int("2" + digits[:9]) % 97) and date(digits[2:6], month_first=True)


def swiss(digits: str) -> bool:
    """AHV number: an EAN-13 that begins with 756."""
    total = sum(int(digit) * (3 if place % 2 else 1) for place, digit in enumerate(digits))
    return total % 10 == 0


def swedish(digits: str) -> bool:
    """Personnummer; of twelve digits the last ten are checked. A day above 60 is a co-ordination number."""
    last = digits[-10:]
    day = int(last[4:6])
    return luhn(last) and 1 <= int(last[2:4]) <= 12 and 1 <= (day - 60 if day > 60 else day) <= 31


def finnish(written: str) -> bool:
    digits = written[:6] + written[-4:-1]
    return date(written[:4]) and _FINNISH[int(digits) % 31] == written[-1]


def chinese(written: str) -> bool:
    """Resident identity number: a date of birth, and ISO 7064, mod 11-2."""
    if not (date(written[10:14], month_first=True) and written[6:8] in ("19", "20")):
        return False
    total = sum((1 << (17 - place)) % 11 * int(digit) for place, digit in enumerate(written[:17]))
    return "10X98765432"[total % 11] == written[17]


def brazilian(digits: str) -> bool:
    """CPF."""
    if len(set(digits)) == 1:
        return False
    for length in (9, 10):
        total = sum((length + 1 - place) * int(digits[place]) for place in range(length))
        if total * 10 % 11 % 10 != int(digits[length]):
            return False
    return True


def verhoeff(digits: str) -> bool:
    """Aadhaar."""
    check = "0"
    for place, digit in enumerate(reversed(digits)):
        check = _VERHOEFF_STEPS[int(check)][int(_VERHOEFF_TURNS[place % 8][int(digit)])]
    return check == "0" and len(set(digits)) > 1


def polish(digits: str) -> bool:
    """PESEL."""
    total = sum(weight * int(digit) for weight, digit in zip((1, 3, 7, 9) * 2 + (1, 3, 1), digits, strict=True))
    return total % 10 == 0 and 1 <= int(digits[2:4]) % 20 <= 12 and 1 <= int(digits[4:6]) <= 31


def date(four: str, *, month_first: bool = False) -> bool:
    """Whether four digits are a day and a month."""
    day, month = int(four[:2]), int(four[2:])
    if month_first:
        day, month = month, day
    return 1 <= day <= 31 and 1 <= month <= 12


def ssn(digits: str) -> bool:
    """A US social security number that can have been given out."""
    return digits[:3] not in ("000", "666") and digits[0] != "9" and digits[3:5] != "00" and digits[5:] != "0000"


def nino(written: str) -> bool:
    """UK national insurance number: it has no check digit, but not every pair of letters is given out."""
    first, second = written[0], written[1]
    if first in "DFIQUV" or second in "DFIQUVO":
        return False
    return first + second not in ("BG", "GB", "KN", "NK", "NT", "TN", "ZZ")
