"""Letters as numbers: which script a text is in, and the hashed groups of letters that tell languages apart."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

Codes = npt.NDArray[np.uint32]

# How much of a text is looked at: more does not change the answer, and costs.
MOST = 400

# Blocks of 128 code points that belong to one script. Families that several languages share have a table to tell them.
_BLOCKS = {
    "latin": (0x0000, 0x0080, 0x0100, 0x0180, 0x0200, 0x1E00, 0x1E80),
    "cyrillic": (0x0400, 0x0480, 0x0500),
    "arabic": (0x0600, 0x0680, 0xFB80, 0xFC00, 0xFC80, 0xFD00, 0xFD80, 0xFE80),
    "devanagari": (0x0900,),
    "el": (0x0380, 0x1F00, 0x1F80),
    "he": (0x0580,),
    "hy": (0x0500,),
    "ka": (0x1080, 0x1C80, 0x2D00),
    "bn": (0x0980,),
    "pa": (0x0A00,),
    "gu": (0x0A80,),
    "ta": (0x0B80,),
    "te": (0x0C00,),
    "kn": (0x0C80,),
    "ml": (0x0D00,),
    "si": (0x0D80,),
    "th": (0x0E00,),
    "lo": (0x0E80,),
    "my": (0x1000,),
    "km": (0x1780,),
    "am": (0x1200, 0x1280, 0x1300),
    "kana": (0x3000, 0x3080),
    "ko": (0x1100, 0x1180, *range(0xAC00, 0xD800, 128)),
    "han": tuple(range(0x3400, 0xA000, 128)),
}
SCRIPTS = ("", *_BLOCKS)
_LATIN, _HAN, _KANA = SCRIPTS.index("latin"), SCRIPTS.index("han"), SCRIPTS.index("kana")
# A sign of Han says about as much as three letters, one of Hangul as two.
_WEIGHTS = np.array([{"": 0, "han": 3, "kana": 3, "ko": 2}.get(script, 1) for script in SCRIPTS], dtype=np.float64)


def _script_table() -> npt.NDArray[np.uint8]:
    """The script of each code point below 0x10000, by what Python says is a letter or a mark of one."""
    table = np.zeros(0x10000, dtype=np.uint8)
    for number, script in enumerate(SCRIPTS):
        for block in _BLOCKS.get(script, ()):
            table[block : block + 128] = number
    table[0x0530:0x0590] = SCRIPTS.index("hy")
    table[0x0500:0x0530] = SCRIPTS.index("cyrillic")
    for code in (
        *range(0x0000, 0x0180),
        *range(0x0600, 0x0700),
        *range(0x3000, 0x3041),
        0x00D7,
        0x00F7,
        0x0964,
        0x0965,
    ):
        if not chr(code).isalpha() and not 0x064B <= code <= 0x065F:
            table[code] = 0
    return table


_SCRIPT = _script_table()
# A letter is itself, all else is the space between words.
_FOLDED = np.where(_SCRIPT > 0, np.arange(0x10000), 32).astype(np.uint32)


def codes_of(text: str) -> Codes:
    """The text's first characters as code points of small letters; those beyond the first plane as 0."""
    codes = np.frombuffer(text[:MOST].lower().encode("utf-32-le", "replace"), dtype=np.uint32)
    return codes if text.isascii() else np.where(codes < 0x10000, codes, 0)


def script_of(codes: Codes) -> tuple[str, int]:
    """The script that most of the text is in, and how many of its letters there are; '' where there are none."""
    counts = np.bincount(_SCRIPT[codes], minlength=len(SCRIPTS))
    counts[0] = 0
    weighed = counts * _WEIGHTS
    best = int(weighed.argmax())
    if best in (_HAN, _KANA) or (counts[_HAN] + counts[_KANA]) * 3 > weighed[best]:
        # Japanese has signs of Han and always its own between them.
        together = int(counts[_HAN] + counts[_KANA])
        return ("ja" if counts[_KANA] * 8 > together else "zh"), together
    return SCRIPTS[best], int(counts[best])


def groups_of(codes: Codes, buckets: int) -> npt.NDArray[np.uint32]:
    """The hashes, below `buckets` (a power of two), of all groups of one to four letters and spaces."""
    letters = _FOLDED[codes]
    space = letters == 32
    kept = letters[np.append(True, ~(space[1:] & space[:-1]))]
    padded = np.concatenate((_SPACE, kept, _SPACE))
    shift = np.uint32(32 - buckets.bit_length() + 1)
    one = padded * _FIRST
    two = (one[:-1] ^ (padded[1:] + _SALT)) * _SECOND
    three = (two[:-1] ^ padded[2:]) * _FIRST
    four = (three[:-1] ^ padded[3:]) * _SECOND
    return np.concatenate((one, two, three, four)) >> shift


_SPACE = np.array([32], dtype=np.uint32)
_FIRST, _SECOND, _SALT = np.uint32(0x9E3779B1), np.uint32(0x85EBCA6B), np.uint32(0x27D4EB2F)
