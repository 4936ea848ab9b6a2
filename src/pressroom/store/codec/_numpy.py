"""The kernel's functions without the kernel: NumPy, the same bytes, a hundredth of the speed.

Everything the encoder decides is decided in whole numbers, so both give the same bytes for the same input; names follow
`kernel.c`, whose comments say why.
"""

from __future__ import annotations

import struct

import numpy as np

from pressroom.store.codec.base import Array, DamagedError

LANES = 64
CONTEXTS = 32
SYMBOLS = 256
FINE = 11
COARSE = 10
ESCAPE = 255
ZERO = 254
GROUP = 32
WINDOW = 32
ALONE = 2
NEAR = 3
FURTHEST = 12
SEGMENTS, COLUMNS = 1, 2
_LOW = 1 << 16
_HEAD = struct.Struct("<4B3I4HI")
# The element of a step that each state codes.
_LANE = np.array([(j & 32) | (j & 12) << 1 | (j & 16) >> 2 | (j & 3) for j in range(LANES)])


class _Bits:
    def __init__(self) -> None:
        self._held = 0
        self._count = 0

    def put(self, value: int, width: int) -> None:
        self._held |= value << self._count
        self._count += width

    def bytes(self) -> bytes:
        return self._held.to_bytes((self._count + 7) // 8, "little")


class _BitsIn:
    def __init__(self, data: bytes) -> None:
        self._text = bin(int.from_bytes(data, "little") | 1 << (8 * len(data)))[:2:-1]
        self._at = 0

    def get(self, width: int) -> int:
        taken = self._text[self._at : self._at + width]
        if len(taken) < width:
            raise DamagedError("a block ends inside its tables")
        self._at += width
        return int(taken[::-1], 2) if width else 0

    def ones(self, most: int) -> int:
        count = 0
        while self.get(1):
            count += 1
            if count > most:
                raise DamagedError("a block has a table that no encoder writes")
        return count

    def ends(self) -> bool:
        rest = self._text[self._at :]
        return len(rest) < 8 and "1" not in rest


def _normalise(count: Array, bits: int, escapes: bool) -> tuple[Array, int]:
    """Frequencies of one context that sum to 2^bits (all 0 where nothing was counted), and the most frequent symbol."""
    freq = np.zeros(SYMBOLS, np.int64)
    whole = 1 << bits
    total = int(count.sum())
    if not total:
        return freq, 0
    count = count.copy()
    if escapes:
        rare = (count > 0) & (count * 11 <= 6 + (total * 3 // 2 >> bits))
        rare[[0, ZERO, ESCAPE]] = False
        count[ESCAPE] += count[rare].sum()
        count[rare] = 0
    top = int(count.argmax())
    for s in np.flatnonzero(count):
        if s == top:
            continue
        f = max(1, (int(count[s]) * whole + total // 2) // total)
        n = f.bit_length()
        if n > 4:
            f = (f + (1 << (n - 5)) >> (n - 4)) << (n - 4)
        freq[s] = f
    others = int(freq.sum())
    share = max(1, int(count[top]) * whole // total)
    while others > whole - share:
        rest = freq.copy()
        rest[top] = -1
        # The first of the largest, as the kernel finds it: it starts looking at 0, or at 1 where 0 is the top.
        largest = int(rest.argmax())
        if freq[largest] < 2:
            break
        n = int(freq[largest]).bit_length()
        step = 1 << (n - 4) if n > 4 else 1
        freq[largest] -= step
        others -= step
    if not others:
        freq[0 if top == ESCAPE else ESCAPE] = 1
        others = 1
    freq[top] = whole - others
    return freq, top


def _tables_write(freq: Array, tops: list[int]) -> bytes:
    bits = _Bits()
    for c in range(CONTEXTS):
        top = tops[c]
        if not freq[c, top]:
            bits.put(0, 1)
            continue
        last = int(np.flatnonzero(freq[c])[-1])
        bits.put(1, 1)
        bits.put(top, 8)
        bits.put(last, 8)
        before = 0
        for s in range(last + 1):
            if s == top:
                before = 9
                continue
            f = int(freq[c, s])
            n = f.bit_length()
            _unary(bits, n - before)
            if n > 1:
                kept = min(3, n - 1)
                bits.put((f >> (n - 1 - kept)) & ((1 << kept) - 1), kept)
            before = n
    return bits.bytes()


def _unary(bits: _Bits, value: int) -> None:
    z = -2 * value - 1 if value < 0 else 2 * value
    bits.put((1 << z) - 1, z + 1)


def _signed(z: int) -> int:
    return -(z + 1) // 2 if z & 1 else z // 2


def _tables_read(data: bytes, bits: int) -> Array:
    source = _BitsIn(data)
    freq = np.zeros((CONTEXTS, SYMBOLS), np.int64)
    for c in range(CONTEXTS):
        if not source.get(1):
            continue
        top, last, before = source.get(8), source.get(8), 0
        for s in range(last + 1):
            if s == top:
                before = 9
                continue
            n = before + _signed(source.ones(28))
            if not 0 <= n <= bits:
                raise DamagedError("a block has a table that no encoder writes")
            f = int(n > 0)
            if n > 1:
                kept = min(3, n - 1)
                f = (1 << kept | source.get(kept)) << (n - 1 - kept)
            freq[c, s] = f
            before = n
        others = int(freq[c].sum())
        if not 1 <= others < 1 << bits:
            raise DamagedError("a block has a table that no encoder writes")
        freq[c, top] = (1 << bits) - others
    if not source.ends():
        raise DamagedError("a block has something behind its tables")
    return freq


def _padding(freq: Array) -> int:
    """Context << 8 | symbol of the elements that fill the last step."""
    for c in range(CONTEXTS):
        if freq[c].any():
            return c << 8 | int(freq[c].argmax())
    return 0


def _padded(n: int) -> int:
    return (n + LANES - 1) // LANES * LANES


def _count(index: Array) -> Array:
    return np.bincount(index, minlength=CONTEXTS * SYMBOLS).reshape(CONTEXTS, SYMBOLS)


def _section_write(index: Array, freq: Array, tops: list[int], bits: int) -> bytes:
    """`index`: context << 8 | symbol of every element, of the padding, too."""
    tables = _tables_write(freq, tops)
    first = (np.cumsum(freq, axis=1) - freq).ravel()
    flat = freq.ravel()
    x = np.full(LANES, _LOW, np.int64)
    words: list[Array] = []
    for step in index.reshape(-1, LANES)[::-1][:, _LANE]:
        f = flat[step]
        full = x >= f << (32 - bits)
        words.append((x[full] & 0xFFFF).astype("<u2"))
        x = np.where(full, x >> 16, x)
        q = x // f
        x = (q << bits) + (x - q * f) + first[step]
    body = b"".join(part.tobytes() for part in reversed(words))
    return struct.pack("<2I", len(body) // 2, len(tables)) + tables + x.astype("<u4").tobytes() + body


def _section_read(data: memoryview, context: Array, bits: int) -> tuple[Array, int]:
    """The symbols of a section under these contexts (of the elements, without padding), and how long the section is."""
    n = len(context)
    if len(data) < 8:
        raise DamagedError("a block ends before its symbols")
    count, tables = struct.unpack_from("<2I", data)
    length = 8 + tables + 4 * LANES + 2 * count
    if length > len(data):
        raise DamagedError("a block ends inside its symbols")
    freq = _tables_read(bytes(data[8 : 8 + tables]), bits)
    slots = np.zeros((CONTEXTS << bits, 3), np.int64)
    for c in range(CONTEXTS):
        at = c << bits
        for s in np.flatnonzero(freq[c]):
            f = int(freq[c, s])
            slots[at : at + f] = s, f, 0
            slots[at : at + f, 2] = np.arange(f)
            at += f
    symbol, frequency, place = slots.T.copy()
    x = np.frombuffer(data, "<u4", LANES, 8 + tables).astype(np.int64)
    if (x < _LOW).any():
        raise DamagedError("a block starts from states that no encoder leaves")
    words = np.frombuffer(data, "<u2", count, 8 + tables + 4 * LANES).astype(np.int64)
    base = np.full(_padded(n), _padding(freq) >> 8, np.int64)
    base[:n] = context
    out = np.empty(_padded(n), np.uint8)
    at = 0
    steps = out.reshape(-1, LANES)
    for i, step in enumerate((base << bits).reshape(-1, LANES)[:, _LANE]):
        k = step + (x & ((1 << bits) - 1))
        steps[i, _LANE] = symbol[k]
        x = frequency[k] * (x >> bits) + place[k]
        low = x < _LOW
        need = int(low.sum())
        if at + need > count:
            raise DamagedError("a block ends inside its symbols")
        x[low] = x[low] << 16 | words[at : at + need]
        at += need
    if at != count or (x != _LOW).any():
        raise DamagedError("the symbols of a block were altered")
    return out[:n], length


def bytes_encode(symbol: Array, context: Array | None) -> bytes:
    """A section of bytes, each under a context below 32."""
    index = symbol.astype(np.int64) if context is None else (context & 31).astype(np.int64) << 8 | symbol
    freq, tops = _tables(_count(index), FINE, escapes=False)
    index = np.concatenate([index, np.full(_padded(len(index)) - len(index), _padding(freq))])
    return _section_write(index, freq, tops, FINE)


def bytes_decode(data: memoryview, context: Array | None, out: Array) -> int:
    """Fill `out` from the section that `data` starts with; returns how long it is."""
    given = np.zeros(len(out), np.int64) if context is None else (context & 31).astype(np.int64)
    out[:], length = _section_read(data, given, FINE)
    return length


def _tables(count: Array, bits: int, *, escapes: bool) -> tuple[Array, list[int]]:
    made = [_normalise(count[c], bits, escapes) for c in range(CONTEXTS)]
    return np.stack([freq for freq, _ in made]), [top for _, top in made]


def _ordered(x: Array) -> Array:
    return x ^ (np.where(x >> 15, 0x7FFF, 0)).astype(np.uint16)


def _segments(n: int, groups: int) -> int:
    return -(-n // (groups * GROUP))


def _sampled(x: Array) -> Array:
    """The elements of every 32nd group."""
    return np.concatenate([x[g : g + GROUP] for g in range(0, len(x), 32 * GROUP)])


def _shift_of(expected: int, changed: int) -> int:
    a, k = changed * 4096, 0
    if expected < 8192 and a < 8192:
        return 0
    a, expected = max(a, 1024), max(expected, 1024)
    while k < FURTHEST and a * 128 > expected * 152:
        expected, k = expected * 181 // 128, k + 1
    while k > -FURTHEST and a * 152 < expected * 128:
        a, k = a * 181 // 128, k - 1
    return k


def _near_contexts(p: Array, top: Array, most: int, shift: int, unit: int) -> Array:
    """Contexts of the elements; `top` is that of each element's segment."""
    e = ((p & 0x7FFF) >> shift << unit).astype(np.int64)
    return np.minimum(np.maximum(top - e, 0), most)


def _look_around(x: Array, p: Array, shift: int) -> tuple[int, Array, int]:
    xs, ps = _sampled(x), _sampled(p)
    e = ((ps & 0x7FFF) >> shift & 255).astype(np.int64)
    total = len(e)
    above = np.cumsum(np.bincount(e, minlength=256)[::-1])
    highest = max(0, 255 - int((above <= total // 256).sum()))
    v = np.minimum(np.maximum(highest - e, 0), WINDOW - 1)
    counted, changed = np.bincount(v, minlength=WINDOW), np.bincount(v[xs != ps], minlength=WINDOW)
    rate = np.where(counted > 0, 1 + changed * 4096 // np.maximum(counted, 1), 1)
    return highest, rate, int(((xs == 0) & (ps != 0)).sum()) * 256 // total


def _pruned_below(x: Array, p: Array) -> int:
    m = p & 0x7FFF
    gone = int(m[x == 0].max(initial=0))
    stayed = int(m[x != 0].min(initial=0x7FFF))
    return stayed if gone < stayed else 0


def _logarithm(v: Array) -> Array:
    """The binary logarithm in 1/256 of whole numbers from 1 to 2^40, in whole numbers."""
    n = np.frexp(v.astype(np.float64))[1].astype(np.int64) - 1
    m = np.where(n > 15, v >> np.maximum(n - 15, 0), v << np.maximum(15 - n, 0))
    part = np.zeros_like(m)
    for _ in range(8):
        m = m * m >> 15
        more = m >> 16
        part = part << 1 | more
        m >>= more
    made: Array = n << 8 | part
    return made


def _cost(counted: Array) -> int:
    counted = counted[counted > 0].astype(np.int64)
    if not len(counted):
        return 0
    total = counted.sum(keepdims=True)
    return int((total * _logarithm(total))[0] - (counted * _logarithm(counted)).sum())


def _merge_contexts(count: Array, most: int) -> int:
    """A bit for each context that keeps a table of its own; `count` is added up there."""
    starts, own = 1, 0
    for c in range(1, most + 1):
        apart = _cost(count[own]) + _cost(count[c]) + 256 * (20 + 5 * int((count[c] > 0).sum()))
        if _cost(count[own] + count[c]) <= apart:
            count[own] += count[c]
            count[c] = 0
        else:
            starts |= 1 << c
            own = c
    return starts


def _map_contexts(starts: int) -> Array:
    return np.maximum.accumulate([c if starts >> c & 1 else 0 for c in range(CONTEXTS)])


# fmt: off
_SCALE = np.array([1, 1, 2, 3, 4, 6, 8, 11, 16, 23, 32, 45, 64, 91, 128, 181, 256, 362, 512, 724,
                   1024, 1448, 2048, 2896, 4096])
_SAVED = np.array([333, 324, 313, 298, 279, 253, 215, 188, 149, 103, 57, 18, 0, 28, 143, 410, 885,
                   1650, 2837, 4549, 7000, 10400, 15100, 21500, 30200])
# fmt: on


def _column_shifts(v: Array, changed: Array, rate: Array, rows: list[int], row: int) -> list[int] | None:
    """What each column is shifted by, or None where telling them apart does not pay."""
    scaled = np.minimum(rate[None, :] * _SCALE[np.array(rows) + FURTHEST][:, None] >> 6, 4096)
    full = len(rows) * row
    which = np.repeat(np.arange(len(rows)), row)[: len(v)]
    expected, differ = np.zeros(full, np.int64), np.zeros(full, np.int64)
    expected[: len(v)] = scaled[which, v]
    differ[: len(v)] = changed
    sums = expected.reshape(-1, row).sum(axis=0)
    shifts = [_shift_of(int(e), int(c)) for e, c in zip(sums, differ.reshape(-1, row).sum(axis=0), strict=True)]
    gain = int((sums * _SAVED[np.array(shifts) + FURTHEST]).sum())
    cost = sum(-2 * k if k < 0 else 2 * k + 1 for k in shifts)
    return shifts if gain >> 20 > 2 * cost else None


def floats_encode(x: Array, p: Array | None, shift: int, groups: int, columns: bool) -> bytes:
    """A block of 16-bit floats (uint16), alone or near `p`; `groups` times 32 elements are a segment, with `columns` a
    row."""
    n = len(x)
    length = groups * GROUP
    parts = [slice(s * length, min(n, (s + 1) * length)) for s in range(_segments(n, groups))]
    unit, top, most, flags = 1, 8, CONTEXTS - 1, 0
    bits = _Bits()
    index = np.empty(_padded(n), np.int64)
    shifts: list[int] = []
    own_shift = shift
    if p is not None:
        highest, rate, zeros = _look_around(x, p, shift)
        least = _pruned_below(x, p) if zeros >= 8 else 0
        if least:
            own_shift, unit, top, most = 0, 0, least, 1
        else:
            top = 2 * highest + 8
        v = np.minimum(np.maximum(highest - ((p & 0x7FFF) >> shift).astype(np.int64), 0), WINDOW - 1)
        expected, changed = rate[v], x != p
        shifts = [0 if least else _shift_of(int(expected[s].sum()), int(changed[s].sum())) for s in parts]
        by_column = None
        if not least and columns and n >= 16 * length and 6 * length + LANES <= n:
            by_column = _column_shifts(v, changed, rate, shifts, length)
        lower = FURTHEST if by_column else 0
        bases = np.repeat([max(0, top + k - lower) for k in shifts], [s.stop - s.start for s in parts])
        if by_column:
            bases += np.resize(np.array(by_column) + FURTHEST, n)
        c = _near_contexts(p, bases, most, own_shift, unit)
        d = _ordered(x) - _ordered(p)
        z = (d << 1) ^ np.where(d >> 15, 0xFFFF, 0).astype(np.uint16)
        symbol = np.where(z < ZERO, z, np.where(x == 0, ZERO, ESCAPE))
        if least:
            shifts = []
        if by_column:
            flags = SEGMENTS | COLUMNS
            shifts += by_column
    else:
        e = ((x >> 7) & 255).astype(np.int64)
        middle = (2 * int(e.sum()) + n // 2) // n
        for s in parts:
            count = s.stop - s.start
            shifts.append(min(7, max(-8, (2 * int(e[s].sum()) + count // 2) // count - middle)))
        c = np.repeat([k + 8 for k in shifts], [s.stop - s.start for s in parts])
        symbol = e
    for k in shifts:
        _unary(bits, k)
    extra = bits.bytes() if flags or any(shifts) else b""
    if extra:
        flags |= SEGMENTS
    index[:n] = c << 8 | symbol
    size = FINE if p is None else COARSE
    counted, starts = _count(index[:n]), 0
    if p is not None:
        starts = _merge_contexts(counted, most)
        index[:n] = _map_contexts(starts)[index[:n] >> 8] << 8 | index[:n] & 255
    freq, tops = _tables(counted, size, escapes=p is not None)
    apart = b""
    escapes = 0
    if p is not None:
        marked = (freq.ravel()[index[:n]] == 0) | (index[:n] & 255 == ESCAPE)
        index[:n][marked] |= ESCAPE
        apart, escapes = x[marked].astype("<u2").tobytes(), int(marked.sum())
    index[n:] = _padding(freq)
    section = _section_write(index, freq, tops, size)
    if p is None:
        apart = (((x >> 8) & 0x80) | (x & 0x7F)).astype(np.uint8).tobytes()
    head = _HEAD.pack(
        ALONE if p is None else NEAR, flags, own_shift, unit, n, escapes, len(extra), groups, top, most, 0, starts
    )
    return head + extra + section + apart


def floats_decode(data: memoryview, p: Array | None, out: Array) -> None:
    """The block `data` into `out` (uint16)."""
    n = len(out)
    if len(data) < _HEAD.size:
        raise DamagedError("a block ends inside its head")
    kind, flags, shift, unit, count, escapes, extra, groups, top, most, zero, starts = _HEAD.unpack_from(data)
    if kind != (ALONE if p is None else NEAR) or count != n or not n or not groups or flags not in (0, 1, 3) or zero:
        raise DamagedError("the head of a block is not what its place asks for")
    if (
        shift > 14
        or unit > 1
        or most >= CONTEXTS
        or (p is None and (escapes or top != 8 or starts))
        or (extra and not flags)
    ):
        raise DamagedError("the head of a block was altered")
    if p is not None and not starts & 1:
        raise DamagedError("the head of a block was altered")
    at = _HEAD.size + extra
    if at > len(data):
        raise DamagedError("a block ends inside its segments")
    segments = _segments(n, groups)
    shifts, by_column = [0] * segments, [0]
    row = groups * GROUP
    if flags:
        source = _BitsIn(bytes(data[_HEAD.size : at]))
        shifts = [_signed(source.ones(30)) for _ in range(segments)]
        if flags & COLUMNS:
            if p is None or row > n:
                raise DamagedError("the head of a block was altered")
            by_column = [_signed(source.ones(30)) for _ in range(row)]
        if not source.ends() or max(map(abs, shifts + by_column)) > FURTHEST:
            raise DamagedError("a block has segments that no encoder writes")
    lower = FURTHEST if flags & COLUMNS else 0
    bases = np.repeat([min(0xFF00, max(0, top + k - lower)) for k in shifts], row)[:n]
    if lower:
        bases += np.resize(np.array(by_column) + FURTHEST, n)
    if p is None:
        if any(not 0 <= top + k < CONTEXTS for k in shifts):
            raise DamagedError("a segment of a block has a context that does not exist")
        symbol, length = _section_read(data[at:], bases, FINE)
    else:
        contexts = _map_contexts(starts)[_near_contexts(p, bases, most, shift, unit)]
        symbol, length = _section_read(data[at:], contexts, COARSE)
    rest = data[at + length :]
    wide = symbol.astype(np.uint16)
    if len(rest) != (n if p is None else 2 * escapes):
        raise DamagedError("a block is longer or shorter than its head says")
    if p is None:
        low = np.frombuffer(rest, np.uint8).astype(np.uint16)
        out[:] = (low & 0x80) << 8 | wide << 7 | (low & 0x7F)
        return
    d = (wide >> 1) ^ np.where(wide & 1, 0xFFFF, 0).astype(np.uint16)
    out[:] = _ordered(_ordered(p) + d)
    out[wide == ZERO] = 0
    marked = wide == ESCAPE
    if int(marked.sum()) != escapes:
        raise DamagedError("a block has more or fewer escapes than its head says")
    out[marked] = np.frombuffer(rest, "<u2")
