"""Telephone numbers, as they are written: international, in the layouts of some countries, or behind a word for one."""

from __future__ import annotations

import re
from collections.abc import Iterator

from pressroom.text._checksums import digits_of
from pressroom.text.findings import Finding

# Behind '+': how many digits follow the country's code. Of three-digit codes, which are in use.
_ONE = {"1": (10, 10), "7": (10, 10)}
_TWO = {
    "20": (8, 10), "27": (9, 9), "30": (10, 10), "31": (9, 9), "32": (8, 9), "33": (9, 9), "34": (9, 9), "36": (8, 9),
    "39": (8, 11), "40": (9, 9), "41": (9, 9), "43": (7, 12), "44": (9, 10), "45": (8, 8), "46": (7, 10), "47": (8, 8),
    "48": (9, 9), "49": (7, 12), "51": (8, 9), "52": (10, 11), "53": (8, 8), "54": (10, 11), "55": (10, 11),
    "56": (9, 9), "57": (10, 10), "58": (10, 10),
    "60": (8, 10), "61": (9, 9), "62": (8, 12), "63": (8, 10), "64": (8, 10),
    "65": (8, 8), "66": (8, 9), "81": (9, 10), "82": (8, 10), "84": (9, 10), "86": (10, 11), "90": (10, 10),
    "91": (10, 10), "92": (9, 10), "93": (9, 9), "94": (9, 9), "95": (7, 10), "98": (10, 10),
}  # fmt: skip
_THREE = (
    "211 212 213 216 218 220 221 222 223 224 225 226 227 228 229 230 231 232 233 234 235 236 237 238 239 240 "
    "241 242 243 244 245 246 248 249 250 251 252 253 254 255 256 257 258 260 261 262 263 264 265 266 267 268 "
    "269 290 291 297 298 299 350 351 352 353 354 355 356 357 358 359 370 371 372 373 374 375 376 377 378 380 "
    "381 382 383 385 386 387 389 420 421 423 500 501 502 503 504 505 506 507 508 509 590 591 592 593 594 595 "
    "596 597 598 599 670 672 673 674 675 676 677 678 679 680 681 682 683 685 686 687 688 689 690 691 692 800 "
    "850 852 853 855 856 880 886 960 961 962 963 964 965 966 967 968 970 971 972 973 974 975 976 977 992 993 "
    "994 995 996 998 "
)

# What stands between two digits of one number.
_BETWEEN = r"(?: ?[.\-/)] ?| )?"
_INTERNATIONAL = re.compile(r"\+(?<![0-9A-Za-z_+]\+)\(?[1-9](?:[ .\-/()]{0,3}[0-9]){6,14}(?![0-9])")
_ALONE = r"(?<![0-9A-Za-z_][0-9])(?<![0-9A-Za-z][./\-:,+][0-9])(?<![#$€£¥+=/][0-9])(?<![$€£¥] [0-9])"
_END = r"(?![0-9A-Za-z_%€]|[.\-/:,=][0-9A-Za-z]| ?[€%$£])"
_NATIONAL = re.compile(
    rf"[0-9]{_ALONE}(?:"
    # 00 and the country: only where it is not one long number.
    rf"((?<=0)0 ?[1-9](?:{_BETWEEN}[0-9]){{8,13}})"
    # 0 and the area, as in most of Europe, Asia and Africa.
    rf"|((?<=0)[1-9](?:{_BETWEEN}[0-9]){{7,10}})"
    # North America.
    r"|((?<=[2-9])[0-9]{2}(?:(?<=\(...)\) ?|([ .\-]))[2-9][0-9]{2}(?(4)\4|[ .\-]?)[0-9]{4})"
    r"|((?<=1)[ .\-]\(?[2-9][0-9]{2}\)?[ .\-][2-9][0-9]{2}[ .\-][0-9]{4})"
    # Russia, Brazil, Spain, China.
    r"|((?<=8)[ \-]?\(?[3489][0-9]{2}\)?[ \-]?[0-9]{3}[ \-][0-9]{2}[ \-][0-9]{2})"
    r"|((?<=\([1-9])[0-9]\) ?9? ?[0-9]{4}-[0-9]{4})"
    r"|((?<=[6-9])[0-9]{2} [0-9]{2} [0-9]{2} [0-9]{2}(?! [0-9]))"
    r"|((?<=1)[3-9][0-9]([ \-])[0-9]{4}\10[0-9]{4})"
    rf"){_END}"
)
_ANY = re.compile(rf"[0-9]{_ALONE}(?:{_BETWEEN}[0-9]){{6,14}}{_END}")

_CUE = re.compile(
    r"(?:(?<![^\W_])(?:tele(?:ph|f)one?s?|phones?|telephon|telefon[oe]?|téléphone|teléfono|tel|tél|mobile?|mobil|móvil"
    r"|celular|cellulare|cell|portable|handy(?:nummer)?|rufnummer|telefonnummer|call|dial|ring|whats ?app|sms|fax"
    r"|text me|appelez|llam[ae]|ligue|rufen? sie|тел(?:ефон)?|моб(?:ильный)?|هاتف|جوال|تلفن|फ़ोन|फोन|मोबाइल"
    r"|τηλ(?:έφωνο)?|טלפון|нөмір|ফোন)"
    r"|电话|電話|手机|手機|号码|號碼|携帯|전화|휴대폰|연락처|โทร)"
    r"(?:\W{0,3}(?:me|us|him|her|number|no|nr|num|numéro|número|numero|nummer|is|at|on|under|unter|ist|est|au|es|al|番号|번호|номер|:))"
    r"{0,3}[^\w+]{0,3}\Z",
    re.IGNORECASE,
)
_DATE = re.compile(
    r"(?:[0-3]?[0-9]([./\- ])[01]?[0-9]\1(?:19|20)[0-9]{2}|(?:19|20)[0-9]{2}([./\- ])?[01][0-9]\2?[0-3][0-9])(?![0-9])"
)
_BOOK = re.compile(r"(?:ISBN|ISSN|EAN|UPC|SKU|DOI|PMID|OCLC)[-:#. ]*(?:1[03])?[-:#. ]*\Z", re.IGNORECASE)
_CHINESE = re.compile("[\u3040-\u30ff\u4e00-\u9fff]")
_PAIR = re.compile(r"[ .:-][0-9A-Fa-f]{2}(?![0-9A-Za-z])")
_GROUPS = re.compile("[0-9]+")


def phones(text: str) -> Iterator[Finding]:
    """Telephone numbers of seven digits and more."""
    if "+" in text:
        for match in _INTERNATIONAL.finditer(text):
            end = _international_end(text, match.start(), match.end())
            if end:
                yield Finding("phone", match.start(), end)
    for match in _NATIONAL.finditer(text):
        start, end = match.span()
        if _is_national(text, start, end):
            yield Finding("phone", start - (text[max(0, start - 1) : start] == "("), end)
    for match in _ANY.finditer(text):
        start, end = match.span()
        if _is_called(text, start, end):
            yield Finding("phone", start - (text[max(0, start - 1) : start] == "("), end)


def _international_end(text: str, start: int, end: int) -> int:
    """Where the number behind '+' ends, which may be before digits that belong to something else; 0 if it is none."""
    while end > start:
        digits = digits_of(text[start:end])
        if _is_dialled(digits):
            return end
        # Without the last group.
        stop = end
        while stop > start and text[stop - 1].isdigit():
            stop -= 1
        while stop > start and not text[stop - 1].isdigit():
            stop -= 1
        end = stop
    return 0


def _is_dialled(digits: str) -> bool:
    """Whether it is a country's code and as many digits as that country's numbers have."""
    if digits[:1] in _ONE:
        least, most = _ONE[digits[0]]
        rest = len(digits) - 1
    elif digits[:2] in _TWO:
        least, most = _TWO[digits[:2]]
        rest = len(digits) - 2
        if digits[2:3] == "0":  # +49 (0) 30 …
            rest -= 1
    elif digits[:3] in _THREE:
        least, most, rest = 6, 10, len(digits) - 3
    else:
        return False
    return least <= rest <= most


def _is_national(text: str, start: int, end: int) -> bool:
    written = text[start:end]
    groups = _GROUPS.findall(written)
    if _DATE.match(text, start) or _BOOK.search(text, max(0, start - 16), start):
        return False
    if written.startswith("00"):
        in_a_row = text[max(0, start - 2) : max(0, start - 1)].isdigit()
        return len(groups) > 1 and not in_a_row and _is_dialled(digits_of(written)[2:])
    if written[0] != "0":
        return True
    digits = "".join(groups)
    if len(groups) == 1:
        # One long number with a zero before it: only of the lengths that are common.
        return len(digits) in (10, 11) and digits not in ("0123456789", "01234567890") and len(set(digits)) > 2
    if all(len(group) == 2 for group in groups):
        # Five pairs, as in France; more of them are bytes.
        return len(groups) == 5 and not _PAIR.match(text, end)
    if sum(len(group) == 1 for group in groups[1:]) > 1:
        return False
    # 1 050 000 000, of which only the first digit was left out.
    thousands = all(len(group) == 3 for group in groups) and text[max(0, start - 2) : max(0, start - 1)].isdigit()
    return len(digits) >= 9 and not thousands


def _is_called(text: str, start: int, end: int) -> bool:
    """Whether a word for telephoning stands before it."""
    digits = digits_of(text[start:end])
    if len(digits) < 7 or _DATE.match(text, start):
        return False
    if len(digits) == 11 and digits[0] == "1" and digits[1] in "3456789" and end - start == 11:
        around = text[max(0, start - 1) : start] + text[end : end + 1]
        if _CHINESE.search(around):
            return True
    return _CUE.search(text, max(0, start - 48), start) is not None
