"""Numbers that stand for one person or one account: cards, IBANs, what states give out, addresses of machines."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from ipaddress import IPv6Address

from pressroom.text import _checksums as check
from pressroom.text._checksums import digits_of, letters_of
from pressroom.text.findings import Finding

# Every pattern begins behind a first digit, which the search finds fast; what stands before it is looked back for.
# Digits and what may stand between them never overlap, so that a search takes time in proportion to the text.
# No letter or digit before it, nor the digits of a decimal fraction or of a longer number with dots.
_ALONE = r"(?<![0-9A-Za-z_][0-9])(?<![0-9A-Za-z]\.[0-9])"
_END = r"(?![0-9A-Za-z_])"


# What stands between groups of digits, and an end of a line.
_MARK = r"[ ./_\u00b7\u2022-]"
_SEAM = rf"(?:{_MARK}|[ -]?\r?\n)"


# Dots and the like go on in numbers that are no card's: the ones of objects, of versions, of parts.
_NO_MORE = r"(?![./_\u00b7\u2022-][0-9])"


def _groups(first: int, *rest: int) -> str:
    """Digits in groups; the search has taken the first one of the first group."""
    return f"[0-9]{{{first - 1}}}" + "".join(f"{_MARK}[0-9]{{{length}}}" for length in rest)


def _lines(first: int, *rest: int) -> str:
    """The same with ends of lines between groups too, unless a number ends the line before or begins the one behind: a
    column of numbers is no number in groups."""
    groups = f"[0-9]{{{first - 1}}}" + "".join(f"{_SEAM}[0-9]{{{length}}}" for length in rest)
    return rf"(?<![0-9]\n[0-9])(?<![0-9]\r\n[0-9]){groups}{_NO_MORE}(?![ -]?\r?\n[0-9])"


_CARD = "|".join(
    (
        "[0-9]{11,18}(?!-[0-9])",
        _groups(4, 4, 4, 4) + f"(?:[ -][0-9]{{2,3}}(?![0-9/.])|{_NO_MORE})",
        _groups(4, 6, 5) + _NO_MORE,
        _groups(4, 6, 4) + _NO_MORE,
        f"(?:{_MARK}[0-9]){{12,18}}(?!{_MARK}[0-9])",
        _lines(4, 4, 4, 4),
        _lines(4, 6, 5),
    )
)

# (name, how it goes on behind its first digit). Of those that begin at one digit the first one is tried. The last ones
# have letters before the digit, as many as `_BEFORE` says; before the others there is nothing.
_PATTERNS = (
    ("card", rf"(?<=[2-68])(?:{_CARD})"),
    ("ip-address", r"[0-9]{0,2}(?:\.[0-9]{1,3}){3}(?![.-][0-9A-Za-z])"),
    ("ssn", r"(?<=[0-8])[0-9]{2}-[0-9]{2}-[0-9]{4}(?!-)"),
    ("de", r"(?<=[1-9])(?:[0-9]{10}|[0-9] [0-9]{3} [0-9]{3} [0-9]{3})"),
    ("fr", r"(?<=[12]) ?[0-9]{2} ?[0-9]{2} ?[0-9][0-9AB] ?[0-9]{3} ?[0-9]{3} ?[0-9]{2}"),
    ("es", r"[0-9]{7}[ -]?[A-HJ-NP-TV-Z]"),
    ("be", r"[0-9]\.[0-9]{2}\.[0-9]{2}-[0-9]{3}[.-][0-9]{2}"),
    ("ch", r"(?<=7)56(?:[0-9]{10}|\.[0-9]{4}\.[0-9]{4}\.[0-9]{2})"),
    ("se", r"(?:[0-9]{5}|[0-9]{7})[+-][0-9]{4}"),
    ("fi", r"[0-9]{5}[-+A-FU-Y][0-9]{3}[0-9A-FHJ-NPR-Y]"),
    ("br", r"[0-9]{2}\.[0-9]{3}\.[0-9]{3}-[0-9]{2}"),
    ("cn", r"(?<=[1-9])[0-9]{16}[0-9Xx]"),
    ("in", r"(?<=[2-9])[0-9]{3} [0-9]{4} [0-9]{4}(?! ?[0-9])"),
    ("kr", r"[0-9]{5}-[1-8][0-9]{6}"),
    ("nie", r"(?<=[XYZ][0-9])(?<![0-9A-Za-z_]..)[0-9]{6}-?[A-HJ-NP-TV-Z]"),
    ("nino", r"(?<=[A-Z]{2}[0-9])(?<![0-9A-Za-z_]...)[0-9] ?[0-9]{2} ?[0-9]{2} ?[A-D]"),
    ("nino2", r"(?<=[A-Z]{2} [0-9])(?<![0-9A-Za-z_]....)[0-9] ?[0-9]{2} ?[0-9]{2} ?[A-D]"),
    ("it", r"(?<=[A-Z]{6}[0-9])(?<![0-9A-Za-z_].......)[0-9][A-EHLMPRST][0-9]{2}[A-Z][0-9]{3}[A-Z]"),
    # How long an IBAN is depends on the country; only its beginning is looked for here.
    ("iban", r"(?<=[A-Za-z]{2}[0-9])(?<![0-9A-Za-z_]...)[0-9](?=" + _SEAM + r"?[A-Za-z0-9]{2})"),
)
_BEFORE = {"nie": 1, "nino": 2, "nino2": 3, "it": 6, "iban": 2}
_NUMBER = re.compile(
    f"[0-9](?:{_ALONE}(?:"
    + "|".join(f"({how}){_END}" for name, how in _PATTERNS if name not in _BEFORE)
    + ")|(?<=[A-Za-z ][0-9])(?:"
    + "|".join(f"({how}){'' if name == 'iban' else _END}" for name, how in _PATTERNS if name in _BEFORE)
    + "))",
    re.DOTALL,
)
_NAMES = ("", *(name for name, _ in _PATTERNS))

_CHECKS: dict[str, Callable[[str], bool]] = {
    "card": check.card,
    "ssn": lambda written: check.ssn(digits_of(written)),
    "de": lambda written: check.german_tax(digits_of(written)),
    "fr": lambda written: check.french_nir(letters_of(written)),
    "es": lambda written: check.spanish(letters_of(written)),
    "be": lambda written: check.belgian(digits_of(written)),
    "ch": lambda written: check.swiss(digits_of(written)),
    "se": lambda written: check.swedish(digits_of(written)),
    "fi": check.finnish,
    "br": lambda written: check.brazilian(digits_of(written)),
    "cn": lambda written: check.chinese(written.upper()),
    "in": lambda written: check.verhoeff(digits_of(written)) and not check.row(written),
    "kr": lambda written: check.date(written[2:6], month_first=True),
    "nie": lambda written: check.spanish(letters_of(written)),
    "nino": check.nino,
    "nino2": check.nino,
    "it": check.italian,
}

# What makes four numbers with dots between them a version or a section.
_VERSION = re.compile(
    r"(?:[vV]er(?:sion|s)?\.?|[Rr]elease|[Bb]uild|[Ss]ection|[Cc]hapter|§|[^/]/|[=~<>!]=|[-+^~])[ :]?\Z"
)
# Nine or eleven digits with one check digit are too often something else: the word for them must stand before them.
_CUED = tuple(
    (cue, re.compile(rf"{cue}[^0-9\n]{{0,24}}([0-9](?:[ .-]?[0-9]){{{count - 1}}}){_END}"), valid)
    for cue, count, valid in (
        ("bsn", 9, check.dutch),
        ("burgerservicenummer", 9, check.dutch),
        ("pesel", 11, check.polish),
        ("ssn", 9, check.ssn),
        ("social security", 9, check.ssn),
    )
)
# In any groups, or in those of four that it is printed in, with anything between them.
_IBAN_RESTS = (
    re.compile(r"(?:[ -]?[A-Za-z0-9]){11,30}"),
    re.compile(rf"(?:{_SEAM}[A-Za-z0-9]{{4}}){{2,7}}(?:{_SEAM}[A-Za-z0-9]{{1,3}})?"),
)
_IP6 = re.compile(
    r"[0-9A-Fa-f](?<![0-9A-Za-z_:.][0-9A-Fa-f])[0-9A-Fa-f]{2,3}:(?:[0-9A-Fa-f]{0,4}:){1,6}[0-9A-Fa-f]{1,4}(?![0-9A-Za-z_:])"
)
# The whole eight groups: found at the first colon, which is rarer than a digit.
_IP6_LONG = re.compile(r":[0-9A-Fa-f]{1,4}(?::[0-9A-Fa-f]{1,4}){6}(?![0-9A-Za-z_:])")
_IP6_FIRST = re.compile(r"(?<![0-9A-Za-z_:.])[0-9A-Fa-f]{1,4}\Z")


def numbers(text: str) -> Iterator[Finding]:
    """Whatever a check digit, a checksum or a layout of its own gives away."""
    position = 0
    search = _NUMBER.search
    while match := search(text, position):
        name = _NAMES[match.lastindex or 0]
        start = match.start() - _BEFORE.get(name, 0)
        end = match.end()
        if name == "iban":
            end = _iban_end(text, start)
            known = end > 0
        elif name == "ip-address":
            known = _is_address(text, start, end)
        else:
            known = _CHECKS[name](text[start:end])
        if known:
            yield Finding(name if name in ("iban", "card", "ip-address", "ssn") else "national-id", start, end)
            position = end
        else:
            position = match.start() + 1


def named_numbers(lower: str) -> Iterator[Finding]:
    """Numbers that only the word before them gives away, in a text in small letters."""
    for cue, pattern, valid in _CUED:
        if cue in lower:
            for match in pattern.finditer(lower):
                if valid(digits_of(match[1])):
                    yield Finding("ssn" if valid is check.ssn else "national-id", *match.span(1))


def ip6_addresses(text: str) -> Iterator[Finding]:
    if "::" in text:
        for match in _IP6.finditer(text):
            written = match.group()
            # A digit in the first group: not a name of C++.
            if "::" in written and any(map(str.isdigit, written.partition(":")[0])) and _is_ip6(written):
                yield Finding("ip-address", *match.span())
    if text.count(":") >= 7:
        for match in _IP6_LONG.finditer(text):
            first = _IP6_FIRST.search(text, max(0, match.start() - 5), match.start())
            if first:
                yield Finding("ip-address", first.start(), match.end())


def _is_ip6(written: str) -> bool:
    try:
        IPv6Address(written)
    except ValueError:
        return False
    return True


def _is_address(text: str, start: int, end: int) -> bool:
    parts = text[start:end].split(".")
    if any((len(part) > 1 and part[0] == "0") or int(part) > 255 for part in parts):
        return False
    # This machine itself, no machine, and masks tell nothing of anybody.
    return parts[0] not in ("0", "127", "255") and not _VERSION.search(text, max(0, start - 10), start)


def _iban_end(text: str, start: int) -> int:
    """Where the IBAN that begins at `start` ends; 0 where there is none."""
    length = check.iban_length(text[start : start + 2])
    if not length:
        return 0
    for written in _IBAN_RESTS:
        rest = written.match(text, start + 4)
        if rest is None:
            continue
        end, count = start + 4, 4
        while count < length and end < rest.end():
            count += text[end].isalnum()
            end += 1
        if count == length and not text[end : end + 1].isalnum() and check.iban(letters_of(text[start:end])):
            return end
    return 0
