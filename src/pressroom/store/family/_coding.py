"""Blocks on their way into a store: hashed, coded, decoded again and compared, on several threads, in order."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
from blake3 import blake3

from pressroom.kernel.errors import StoreError
from pressroom.store import codec
from pressroom.store.family._objects import Block, check_of

#: Fills a buffer with the raw bytes that block `number` is told from; False where they cannot be had.
Parent = Callable[[int, memoryview], bool]


@dataclass(frozen=True, slots=True)
class Coded:
    """A block as it is stored, and whether its parent is needed to read it."""

    data: bytes
    block: Block
    near: bool


class Coder:
    """Codes blocks on a pool of threads; at most two more than there are threads are under way. Use it with `with`."""

    def __init__(self, threads: int) -> None:
        self._threads = max(1, threads)
        self._pool = ThreadPoolExecutor(self._threads)
        self._under_way: deque[tuple[Future[Coded], bytearray, Callable[[Coded], None]]] = deque()
        self._spare: list[bytearray] = []
        self._own = threading.local()

    def __enter__(self) -> Coder:
        return self

    def __exit__(self, *_: object) -> None:
        for future, _buffer, _taken in self._under_way:
            future.cancel()
        self._pool.shutdown()
        self._under_way.clear()

    def buffer(self, length: int) -> memoryview:
        """Memory for one block, to be handed to `add`."""
        raw = self._spare.pop() if self._spare else bytearray(codec.BLOCK)
        if len(raw) < length:
            raw = bytearray(length)
        return memoryview(raw)[:length]

    def add(
        self,
        raw: memoryview,
        dtype: str,
        row: int,
        number: int,
        parent: Parent | None,
        taken: Callable[[Coded], None],
        digest: bytes | None = None,
    ) -> None:
        """Code a block; `taken` gets it, on this thread, after those that were added before. `digest`: its BLAKE3,
        where it is known."""
        while len(self._under_way) >= self._threads + 2:
            self._take()
        owner = raw.obj
        assert isinstance(owner, bytearray)
        self._under_way.append((self._pool.submit(self._code, raw, dtype, row, number, parent, digest), owner, taken))

    def drain(self) -> None:
        """Wait for all that was added."""
        while self._under_way:
            self._take()

    def spare(self, raw: memoryview) -> None:
        """Give back memory that was not handed to `add`."""
        owner = raw.obj
        assert isinstance(owner, bytearray)
        self._spare.append(owner)

    def _take(self) -> None:
        future, buffer, taken = self._under_way.popleft()
        coded = future.result()
        self._spare.append(buffer)
        taken(coded)

    def _code(
        self, raw: memoryview, dtype: str, row: int, number: int, parent: Parent | None, digest: bytes | None
    ) -> Coded:
        digest = digest or blake3(raw).digest()
        near: memoryview | None = None
        if parent is not None:
            near = self._scratch("parent", len(raw))
            if not parent(number, near):
                near = None
        data = codec.encode(raw, dtype=dtype, row=row, parent=near)
        needs = codec.needs_parent(data)
        # A coder that is wrong on one input in a million must not lose it: what is kept has been read once.
        again = self._scratch("again", len(raw))
        codec.decode(data, again, parent=near if needs else None)
        if not _equal(again, raw):
            raise StoreError(
                f"a block of {len(raw)} bytes of {dtype} does not decode to what it was",
                hint="This is a fault of the codec or of this machine's memory: please report it.",
                dtype=dtype,
                codec=codec.codec_name(data),
            )
        return Coded(data, Block(len(data), check_of(data), digest), needs)

    def _scratch(self, name: str, length: int) -> memoryview:
        held: bytearray | None = getattr(self._own, name, None)
        if held is None or len(held) < length:
            held = bytearray(max(length, codec.BLOCK))
            setattr(self._own, name, held)
        return memoryview(held)[:length]


def _equal(a: memoryview, b: memoryview) -> bool:
    """Whether two blocks of one length are the same; eight bytes at a time."""
    words = len(a) // 8
    if not np.array_equal(np.frombuffer(a, np.uint64, words), np.frombuffer(b, np.uint64, words)):
        return False
    return bytes(a[8 * words :]) == bytes(b[8 * words :])
