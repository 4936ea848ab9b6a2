"""A text with its disguises taken off: other scripts' digits, full-width letters, characters that nobody sees."""

from __future__ import annotations

import re
import unicodedata
from bisect import bisect_right
from collections.abc import Iterable, Sequence

# Zero-width spaces and joiners, marks of direction, soft hyphens, variation selectors.
_UNSEEN_CLASS = "\u00ad\u034f\u061c\u180b-\u180f\u200b-\u200f\u202a-\u202e\u2060-\u206f\ufe00-\ufe0f\ufeff"
_UNSEEN = re.compile(f"[{_UNSEEN_CLASS}]+")
_DASHES = "‐‑‒–—―⁃−﹘﹣－"
_SPACES = "\u00a0\u2000\u2001\u2002\u2003\u2004\u2005\u2006\u2007\u2008\u2009\u200a\u202f\u205f\u3000"


def _substitutes() -> dict[int, str]:
    table = dict.fromkeys(map(ord, _SPACES), " ") | dict.fromkeys(map(ord, _DASHES), "-")
    # Not the punctuation that every Chinese and Japanese text is full of.
    for code in (*range(0xFE50, 0xFE70), *range(0xFF01, 0xFF5F), *range(0x1D400, 0x1D800)):
        plain = unicodedata.normalize("NFKC", chr(code))
        if len(plain) == 1 and plain.isascii() and plain not in ",!?;:()":
            table.setdefault(code, plain)
    for code in range(0x660, 0x1FC00):
        digit = unicodedata.decimal(chr(code), -1)
        if digit >= 0:
            table[code] = str(digit)
    return table


_SUBSTITUTES = _substitutes()


def _ranges(codes: Iterable[int]) -> str:
    """The characters as a class of a pattern, as few ranges as they are: that makes searching for them fast."""
    ranges: list[list[int]] = []
    for code in sorted(codes):
        if ranges and ranges[-1][1] == code - 1:
            ranges[-1][1] = code
        else:
            ranges.append([code, code])
    return "".join(f"{re.escape(chr(first))}-{re.escape(chr(last))}" for first, last in ranges)


# A class within the first 65,536 characters is a table to the search, and fast; with others in it, it is not.
_DISGUISED = re.compile(f"[{_UNSEEN_CLASS}{_ranges(code for code in _SUBSTITUTES if code < 0x10000)}]")
_DISGUISED_BEYOND = re.compile(f"[{_ranges(code for code in _SUBSTITUTES if code >= 0x10000)}]")


def plain(text: str) -> tuple[str, Sequence[int]]:
    """The text to look at, and where characters were left out of it (places in the new text, for `place`)."""
    if text.isascii():
        return text, ()
    if not _DISGUISED.search(text):
        # Two bytes a character: none is beyond the table.
        beyond = len(text.encode("utf-16-le", "surrogatepass")) != 2 * len(text)
        if not beyond or not _DISGUISED_BEYOND.search(text):
            return text, ()
    text = text.translate(_SUBSTITUTES)
    if not _UNSEEN.search(text):
        return text, ()
    cuts: list[int] = []
    for match in _UNSEEN.finditer(text):
        cuts.extend([match.start() - len(cuts)] * (match.end() - match.start()))
    return _UNSEEN.sub("", text), cuts


def place(position: int, cuts: Sequence[int]) -> int:
    """Where the character at `position` of the plain text stands in the text it was made of."""
    return position + bisect_right(cuts, position)
