"""What in a text is personal: addresses, numbers and dates that stand for one person."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence

from pressroom.text._numbers import ip6_addresses, named_numbers, numbers
from pressroom.text._phones import phones
from pressroom.text._plain import Layer, place, plain, without_controls
from pressroom.text.findings import Finding, disjoint

# Digits become '0', control characters '\x01', other bytes 'a', and what may stand between the digits of a number is
# left out: what text has no number in it is seen without a pattern, at a thousandth of a microsecond a character. Ends
# of lines are kept: they may stand within a number, but mostly stand between two.
_SHAPE = bytes(
    48
    if 48 <= code < 58
    else code
    if code in b".\n"
    else 1
    if code == 127 or (code < 32 and code not in b"\t\v\f\r")
    else 97
    for code in range(256)
)
_BETWEEN = b" -()/_\r" + "·•".encode()

_HOST = r"[^\W_](?:[\w-]{0,62}[^\W_])?"
# White space and control characters, in an address that is taken apart.
_GAP = "\x00-\x20\x7f-\x9f"
# The second has the dots of Chinese and Japanese in it, the third stands apart from its '@', or both.
_AT = re.compile(
    rf"@(?:({_HOST}(?:\.{_HOST})+)|({_HOST}(?:[.\u3002\uff61][0-9A-Za-z](?:[\w-]{{0,62}}[^\W_])?)+)"
    rf"|[{_GAP}]{{1,3}}({_HOST}(?:\.{_HOST})+))"
)
_DOTS = re.compile("[.\u3002\uff61]")
_GAP_BEFORE = re.compile(rf"[{_GAP}]{{1,3}}\Z")
# An address in pieces must end as most addresses do: '@' between spaces is much else, as in code.
_ENDS = frozenset((
    "com", "org", "net", "edu", "gov", "mil", "info", "biz", "io", "ai", "app", "dev", "ar", "at", "au", "be",
    "br", "ca", "ch", "cl", "cn", "co", "cz", "de", "dk", "ee", "es", "eu", "fi", "fr", "gr", "hk", "hr", "hu",
    "ie", "il", "in", "ir", "it", "jp", "kr", "lt", "lu", "lv", "mx", "my", "nl", "no", "nz", "pe", "ph", "pt",
    "ro", "rs", "ru", "se", "sg", "si", "sk", "th", "tr", "tw", "ua", "uk", "us", "vn", "za",
))  # fmt: skip
_QUOTED = re.compile(r'"[^"\n]{1,64}"')
_SPOKEN_AT = re.compile(
    r" ?[(\[{<] ?at ?[)\]}>] ?([\w-]{1,63}(?:(?:\.| ?[(\[{<] ?(?:dot|\.) ?[)\]}>] ?| dot )[\w-]{1,63}){1,4})",
    re.IGNORECASE,
)
_DOT_AT = re.compile(r" at ([\w-]{1,63}(?: dot [\w-]{1,63}){1,4})", re.IGNORECASE)
# A user and a password in an address of a server are no mailbox; `secrets_in` finds them.
_USER = re.compile(r"://[^\s/@:]*:[^\s/@]*\Z")
_LOCAL = re.compile(r"[\w.%+'~-]{1,64}")
_LOCAL_SPOKEN = re.compile(r"(?:[\w.%+'~-]| (?:tod|TOD|toD) ){1,64}")
_AT_WORD = re.compile(r"[(\[{<] ?[aA][tT] ?[)\]}>]")

_YEAR = r"(?:1[89]|20)[0-9]{2}"
_DATE = re.compile(
    r"[0-9](?<![0-9A-Za-z_.][0-9])(?:"
    rf"[0-9]?(?: ?([./\-]) ?|( ))[0-9]{{1,2}}(?: ?\1 ?|\2)(?:{_YEAR}|[0-9]{{2}})"
    r"|(?<=[12])[0-9]{3}(?:([./\-])[0-9]{1,2}\3[0-9]{1,2}| ?[年년] ?[0-9]{1,2} ?[月월] ?[0-9]{1,2} ?[日일]?)"
    # 12 May 1990, 12. Mai 1990, 12 de mayo de 1990; and May 12, 1990, whose month is looked back for.
    rf"|[0-9]?(?:st|nd|rd|th|er|[.ºª])?(?: de| of)? [^\W\d_]{{3,12}}\.?,?(?: de| of)? {_YEAR}"
    rf"|([0-9]?(?:st|nd|rd|th)?,? {_YEAR})"
    r")(?![0-9])"
)
_MONTH = re.compile(r"[^\W\d_]{3,12}\.? \Z")
_BORN = re.compile(
    r"birth|\bborn\b|\bdob\b|d\.o\.b|gebor|geburt|\bgeb\.|\*\s?\Z|naiss|\bnée?\b|nacim|nacid[oa]|nasc"
    r"|\bnat[oa] (?:il|a)|urodz|рожд|родил|народ|出生|生年月日|生日|誕生|생년월일|출생|생일|ميلاد|مواليد|जन्म|doğum"
    r"|syntym|född|født|fødsel|születés|narozen|γέννησ|γεννήθηκ",
    re.IGNORECASE,
)
_BIRTH_GAP = 40
# Of the words above, what stands in a text without letters beyond ASCII; looking for them is faster than for dates.
_BORN_STEMS = (
    "born",
    "birth",
    "dob",
    "d.o.b",
    "geb",
    "naiss",
    "naci",
    "nasc",
    "nata ",
    "nato ",
    "urodz",
    "syntym",
    "naroz",
    "*",
)


def personal_data(text: str) -> list[Finding]:
    """What stands for one person, by place; no two overlap. Kinds: `email`, `phone`, `iban`, `card`, `ssn`,
    `national-id`, `ip-address`, `birth-date`. Names of persons and postal addresses are not looked for.

    It takes time in proportion to the text, about 50 ms a million characters of prose; `in_pieces` is for long ones."""
    looked_at, layers, raised = plain(text)
    shape = _shape(looked_at)
    found = list(_look(looked_at, shape))
    if raised:
        found += _look(raised, _shape(raised))
    if b"\x01" in shape:
        bare, hidden = without_controls(raised or looked_at)
        found += [_placed(one, hidden) for one in _look(bare, _shape(bare))]
    if not found:
        return found
    kept = disjoint(found)
    return [_placed(one, layers) for one in kept] if layers else kept


def _placed(finding: Finding, layers: Sequence[Layer]) -> Finding:
    return Finding(finding.kind, *place(finding.start, finding.end, layers))


def _shape(text: str) -> bytes:
    return text.encode("utf-8", "replace").translate(_SHAPE, _BETWEEN)


def _look(text: str, shape: bytes) -> Iterator[Finding]:
    if "@" in text:
        yield from _emails(text)
    # Brackets are rarer than the words in them; a character is found much faster than a word.
    if (("(" in text or "[" in text or "{" in text or "<" in text) and _AT_WORD.search(text)) or " dot " in text:
        yield from _spoken_emails(text)
    four = b"0000" in shape
    # The last one: what letters and digits a codice fiscale is made of.
    numbered = (four and (b"000000" in shape or b"0000\n0000" in shape)) or b"0.0" in shape or b"00a00a000a" in shape
    if numbered:
        yield from numbers(text)
        lower = text.lower()
        if len(lower) == len(text):  # unless a letter's small form is longer: places would not agree
            yield from named_numbers(lower)
        yield from phones(text)
    if (numbered or four) and _may_tell_births(text):
        yield from _births(text)
    if ":" in text:
        yield from ip6_addresses(text)


def _emails(text: str) -> Iterator[Finding]:
    for match in _AT.finditer(text):
        at = match.start()
        host = match[match.lastindex or 0]
        apart = _GAP_BEFORE.search(text, max(0, at - 3), at)
        if not _ends_address(host, apart=apart is not None or match.lastindex == 3):
            continue
        end = apart.start() if apart else at
        start = _local_start(text, end, _LOCAL)
        if start == end and text[end - 1 : end] == '"':
            quoted = _QUOTED.match(text[max(0, end - 66) : end][::-1])
            start = end - len(quoted.group()) if quoted else end
        if start < end and not _USER.search(text, max(0, start - 128), end):
            yield Finding("email", start, match.end())


def _ends_address(host: str, *, apart: bool) -> bool:
    """Whether what stands behind '@' is a host, and not the version behind a package's name."""
    last = _DOTS.split(host)[-1]
    if apart:
        return last.lower() in _ENDS and not host.startswith("www.")
    # Top-level domains are letters (or punycode).
    return len(last) >= 2 and (last.isalpha() or last.startswith("xn--"))


def _spoken_emails(text: str) -> Iterator[Finding]:
    for pattern in (_SPOKEN_AT, _DOT_AT):
        for match in pattern.finditer(text):
            start = _local_start(text, match.start(), _LOCAL_SPOKEN)
            if start < match.start() and re.split(r"[\W]+", match.group(1))[-1].isalpha():
                yield Finding("email", start, match.end())


def _local_start(text: str, at: int, allowed: re.Pattern[str]) -> int:
    """Where the part of an address before '@' begins, read backwards; `at` where there is none."""
    backwards = text[max(0, at - 64) : at][::-1]
    match = allowed.match(backwards)
    return at - len(match.group().rstrip(".'-")) if match else at


def _may_tell_births(text: str) -> bool:
    if not text.isascii():
        return True
    lower = text.lower()
    return any(stem in lower for stem in _BORN_STEMS)


def _births(text: str) -> Iterator[Finding]:
    for match in _DATE.finditer(text):
        start = match.start()
        before = text[max(0, start - _BIRTH_GAP) : start]
        if _BORN.search(before.rpartition("\n\n")[2]):
            month = _MONTH.search(before) if match.lastindex == 4 else None
            yield Finding("birth-date", start - (len(month.group()) if month else 0), match.end())
