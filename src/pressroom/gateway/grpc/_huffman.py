"""The Huffman code of HTTP/2's headers (RFC 7541, appendix B): decoding what clients send.

The code is canonical: the codes of one length are consecutive numbers in the order of their symbols, and a longer code
goes on where the shorter ones ended. So the lengths are all there is to know.
"""

from __future__ import annotations

import functools

# The length in bits of the code of each byte, and at last of the end of the string.
_LENGTHS = bytes.fromhex(
    "0d171c1c1c1c1c1c1c181e1c1c1e1c1c1c1c1c1c1c1c1e1c1c1c1c1c1c1c1c1c060a0a0c0d06080b0a0a080b080606060505050606060606"
    "060607080f060c0a0d06070707070707070707070707070707070707070707070807080d130d0e060f050605060506060605070706060605"
    "06070605050607070707070f0b0e0d1c14161414161616171617171717171817181816171817171717151617161717181615141616171715"
    "1716161815161717151516151716171714161616171616171a1a1413161716191a1a1a1b1b1a181913151a1b1b1a1b1815151a1a1c1b1b1b"
    "14181415161515171616191918181a171a1b1a1a1b1b1b1b1b1c1b1b1b1b1b1a1e"
)
_END = 256
_NIBBLE = 4


class HuffmanError(ValueError):
    """Bytes that are no string in this code."""


def decode(data: bytes) -> bytes:
    """The string.

    Raises:
        HuffmanError: it has the end-of-string symbol in it, or ends in what is no padding (RFC 7541, 5.2).
    """
    steps = _machine()
    state, padding, found = 0, True, bytearray()
    for byte in data:
        for bits in (byte >> _NIBBLE, byte & 0xF):
            state, padding, symbol = steps[state][bits]
            if symbol >= 0:
                found.append(symbol)
            if state < 0:
                raise HuffmanError("the end of the string is in the middle of it")
    if not padding:
        raise HuffmanError("the string ends in the middle of a symbol")
    return bytes(found)


def codes() -> list[tuple[int, int]]:
    """The code and its length in bits of each of the 257 symbols."""
    found = [(0, 0)] * len(_LENGTHS)
    code = before = 0
    for length, symbol in sorted((length, symbol) for symbol, length in enumerate(_LENGTHS)):
        code <<= length - before
        found[symbol] = (code, length)
        before = length
        code += 1
    return found


@functools.cache
def _machine() -> list[list[tuple[int, bool, int]]]:
    """For each state and each four bits: the next state (-1: none), whether a string may end there, and the symbol that
    was completed (-1: none). No code is shorter than five bits, so four complete at most one."""
    tree: list[list[int]] = [[0, 0]]  # a node's children; leaves are -1 - symbol
    padding = {0}
    for symbol, (code, length) in enumerate(codes()):
        node = 0
        for place in range(length - 1, -1, -1):
            bit = code >> place & 1
            if place == 0:
                tree[node][bit] = -1 - symbol
            elif tree[node][bit] > 0:
                node = tree[node][bit]
            else:
                tree.append([0, 0])
                tree[node][bit] = len(tree) - 1
                node = len(tree) - 1
    # Padding is up to seven of the bits that begin the end of the string, which are ones.
    node = 0
    for _ in range(7):
        node = tree[node][1]
        padding.add(node)
    return [[_step(tree, padding, state, nibble) for nibble in range(1 << _NIBBLE)] for state in range(len(tree))]


def _step(tree: list[list[int]], padding: set[int], state: int, nibble: int) -> tuple[int, bool, int]:
    symbol = -1
    for place in range(_NIBBLE - 1, -1, -1):
        state = tree[state][nibble >> place & 1]
        if state < 0:
            symbol, state = -1 - state, 0
            if symbol == _END:
                return -1, False, -1
    return state, state in padding, symbol
