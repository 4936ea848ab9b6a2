"""A text with its disguises taken off: other scripts' digits, full-width and circled letters, escapes, characters that
nobody sees."""

from __future__ import annotations

import re
import unicodedata
from bisect import bisect_right
from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple

# Zero-width spaces and joiners, marks of direction, soft hyphens, variation selectors, marks that combine (also the
# accents of text in the decomposed form: what is looked for needs none).
_UNSEEN_CLASS = (
    "\u00ad\u0300-\u036f\u061c\u180b-\u180f\u1ab0-\u1aff\u1dc0-\u1dff\u200b-\u200f\u202a-\u202e\u2060-\u206f\u20d0-\u20ff"
    "\ufe00-\ufe0f\ufe20-\ufe2f\ufeff"
)
_UNSEEN = re.compile(f"[{_UNSEEN_CLASS}]+")
_DASHES = "‐‑‒–—―⁃−﹘﹣－"
_SPACES = "\u00a0\u2000\u2001\u2002\u2003\u2004\u2005\u2006\u2007\u2008\u2009\u200a\u202f\u205f\u3000"


# Each 26 letters; Unicode does not say of them what they look like.
_WHITE_ON_BLACK = (0x1F150, 0x1F170)
# What is no digit of a number, but may stand for one: superscript, subscript, circled.
_RAISED = {
    code: str(unicodedata.digit(chr(code)))
    for code in range(0xB2, 0x10000)
    if unicodedata.digit(chr(code), -1) >= 0 and unicodedata.decimal(chr(code), -1) < 0
}
_CONTROL = re.compile("[\x00-\x08\x0e-\x1f\x7f]+")

# A run of backslashes begins where none stands before it. Of what is escaped only ASCII matters.
_BACKSLASHED = re.compile(
    r"\\(?<!\\\\)\\*+(?:x([2-7][0-9a-fA-F])|[uU](?:00|000000)([2-7][0-9a-fA-F])|u\{0{0,8}([2-7][0-9a-fA-F])\})"
)
_PERCENT = re.compile("%40")
_ENTITY = re.compile(r"&(?:#(?:0{0,8}64|[xX]0{0,8}40)|commat);?")


def _substitutes() -> dict[int, str]:
    table = dict.fromkeys(map(ord, _SPACES), " ") | dict.fromkeys(map(ord, _DASHES), "-")
    table[0x2024] = "."  # the one that leads to a page's number
    # Not the punctuation that every Chinese and Japanese text is full of.
    for code in (
        *range(0x24B6, 0x24EA),
        *range(0xFE50, 0xFE70),
        *range(0xFF01, 0xFF5F),
        *range(0x1D400, 0x1D800),
        *range(0x1F130, 0x1F14A),
    ):
        plain = unicodedata.normalize("NFKC", chr(code))
        if len(plain) == 1 and plain.isascii() and plain not in ",!?;:()":
            table.setdefault(code, plain)
    for first in _WHITE_ON_BLACK:
        table |= {first + number: chr(0x41 + number) for number in range(26)}
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
_CHANGED = (*_SUBSTITUTES, *_RAISED)
_DISGUISED = re.compile(f"[{_UNSEEN_CLASS}{_ranges(code for code in _CHANGED if code < 0x10000)}]")
_DISGUISED_BEYOND = re.compile(f"[{_ranges(code for code in _CHANGED if code >= 0x10000)}]")
_RAISED_ONE = re.compile(f"[{_ranges(_RAISED)}]")


class Layer(NamedTuple):
    """Where characters were left out of a text, as places in the new text. Escapes belong to the character before their
    places: with it they are found; what nobody sees is no part of what ends before it."""

    cuts: Sequence[int]
    escapes: bool

    def back(self, start: int, end: int) -> tuple[int, int]:
        """`start` and `end` in the text that the layer was taken off."""
        cuts = self.cuts
        if self.escapes:
            return start + bisect_right(cuts, start), end + bisect_right(cuts, end)
        return start + bisect_right(cuts, start), end + bisect_right(cuts, end - 1)


def plain(text: str, *, escapes: bool = True) -> tuple[str, list[Layer], str]:
    """The text to look at; what was left out of it, in order; and the same text with digits in place of those above and
    below the line and in circles, "" where there are none. Those may be somebody's number, and they may be the mark of
    a note behind one, so that both texts are to be looked at. Without `escapes`, those of ASCII stay as they are."""
    layers: list[Layer] = []
    if escapes and "\\" in text:
        text = _unescaped(text, _BACKSLASHED, lambda match: chr(int(match[match.lastindex or 0], 16)), layers)
    if escapes and "%" in text:  # one character is found much faster than three
        text = _unescaped(text, _PERCENT, _at, layers)
    if escapes and "&" in text:
        text = _unescaped(text, _ENTITY, _at, layers)
    if text.isascii():
        return text, layers, ""
    if not _DISGUISED.search(text):
        # Two bytes a character: none is beyond the table.
        beyond = len(text.encode("utf-16-le", "surrogatepass")) != 2 * len(text)
        if not beyond or not _DISGUISED_BEYOND.search(text):
            return text, layers, ""
    text = _without(text.translate(_SUBSTITUTES), _UNSEEN, layers)
    return text, layers, text.translate(_RAISED) if _RAISED_ONE.search(text) else ""


def without_controls(text: str) -> tuple[str, list[Layer]]:
    """The text without control characters that are no white space, which nobody sees either. They may as well be all
    that stands between two numbers, so that the text with them is to be looked at too."""
    layers: list[Layer] = []
    return _without(text, _CONTROL, layers), layers


def place(start: int, end: int, layers: Sequence[Layer]) -> tuple[int, int]:
    """Where what lies from `start` to `end` in a text stands in the one that the layers were taken off."""
    for layer in reversed(layers):
        start, end = layer.back(start, end)
    return start, end


def _without(text: str, unseen: re.Pattern[str], layers: list[Layer]) -> str:
    cuts: list[int] = []
    for match in unseen.finditer(text):
        cuts.extend([match.start() - len(cuts)] * (match.end() - match.start()))
    if not cuts:
        return text
    layers.append(Layer(cuts, escapes=False))
    return unseen.sub("", text)


def _unescaped(text: str, escaped: re.Pattern[str], meant: Callable[[re.Match[str]], str], layers: list[Layer]) -> str:
    cuts: list[int] = []
    parts: list[str] = []
    end = 0
    for match in escaped.finditer(text):
        parts += (text[end : match.start()], meant(match))
        end = match.end()
        cuts.extend([match.start() - len(cuts) + 1] * (end - match.start() - 1))
    if not cuts:
        return text
    layers.append(Layer(cuts, escapes=True))
    return "".join((*parts, text[end:]))


def _at(match: re.Match[str]) -> str:
    return "@"
