"""Bytes on their way into a store: gathered into blocks, hashed, held against what was declared."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator

from pressroom.kernel.errors import DigestMismatchError
from pressroom.store._hashing import BLOCK, digest_of, new_hasher
from pressroom.store.base import Blob

Block = bytes | bytearray


def receive(
    chunks: Iterable[bytes],
    *,
    expected: str | None = None,
    size: int | None = None,
    write: Callable[[Block], None] | None = None,
) -> Blob:
    """Hash the bytes and hand them to `write` in blocks. An error of the source or of `write` passes through.

    Raises:
        DigestMismatchError: they are not `size` bytes with the digest `expected`, where these are given.
    """
    hasher = new_hasher(size)
    count = 0
    for block in _blocks(chunks, size):
        hasher.update(block)
        count += len(block)
        if write is not None:
            write(block)
    blob = Blob(digest_of(hasher), count)
    _matches(blob, expected, size)
    return blob


def _blocks(chunks: Iterable[bytes], size: int | None) -> Iterator[Block]:
    """The same bytes in blocks worth hashing and writing; stops as soon as they are more than `size`."""
    gathered = bytearray()
    count = 0
    for chunk in chunks:
        count += len(chunk)
        if size is not None and count > size:
            raise DigestMismatchError(
                f"{size} bytes were declared, and there are more",
                hint="The source changed, or the transfer was altered: try again.",
                declared=size,
            )
        if not gathered and len(chunk) >= BLOCK:
            yield chunk
            continue
        gathered += chunk
        if len(gathered) >= BLOCK:
            yield gathered
            gathered = bytearray()
    if gathered:
        yield gathered


def _matches(blob: Blob, expected: str | None, size: int | None) -> None:
    if size is not None and blob.size != size:
        raise DigestMismatchError(
            f"{size} bytes were declared, and {blob.size} came",
            hint="The transfer was cut short: try again.",
            declared=size,
            found=blob.size,
        )
    if expected is not None and blob.digest != expected:
        raise DigestMismatchError(
            f"the bytes are {blob.digest}, and {expected} was declared",
            hint="The transfer was altered, or the declared digest is of something else.",
            expected=expected,
            found=blob.digest,
        )
