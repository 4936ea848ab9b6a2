"""Files that are no weights, or too small to be worth it: kept whole, one piece each."""

from __future__ import annotations

import errno
from collections.abc import Iterable

from blake3 import blake3

from pressroom.kernel.disk import sync_directory
from pressroom.kernel.errors import DigestMismatchError, NotFoundError, StoreError
from pressroom.store._hashing import digest_of, file_digest
from pressroom.store._receiving import receive
from pressroom.store.base import Blob, not_held
from pressroom.store.places.base import Place, Writer

FOLDER = "blobs/"
_STEP = 4 << 20


def name_of(digest: str) -> str:
    """The piece that is the file."""
    return f"{FOLDER}{digest[7:9]}/{digest}"


def put(place: Place, writer: Writer, chunks: Iterable[bytes], *, expected: str | None, size: int | None) -> Blob:
    """Keep the bytes through the writer, as `Store.put` says."""
    blob = receive(chunks, expected=expected, size=size, write=writer.write)
    keep(place, writer, name_of(blob.digest), blob.digest)
    return blob


def keep(place: Place, writer: Writer, name: str, wanted: str) -> None:
    """Give what was written its name, unless the right bytes have it: others may be reading these, or be told from
    them."""
    if place.size(name) is not None:
        if is_right(place, name, wanted):
            settle(place, name)
            return
        place.delete(name)
    writer.commit(name)


def settle(place: Place, name: str) -> None:
    """Make a piece durable that somebody else put, who may not have come to that yet."""
    path = place.local(name)
    if path is None:
        return
    try:
        for directory in path.parents[: name.count("/") + 1]:
            sync_directory(directory)
    except OSError as error:
        # On a disk that may only be read nothing is under way.
        if error.errno != errno.EROFS:
            raise StoreError(
                f"the store failed: {path.parent} cannot be synced: {error.strerror}",
                hint="The disk is failing: check it.",
                path=str(path),
            ) from error


def digest(place: Place, name: str) -> tuple[str, int]:
    """The digest of a piece and its size. Raises NotFoundError and StoreError."""
    path = place.local(name)
    if path is not None:
        try:
            return file_digest(path)
        except FileNotFoundError as error:
            raise NotFoundError(f"there is no piece {name}", hint="", asked=name) from error
        except OSError as error:
            raise StoreError(
                f"the store failed: {path} cannot be read: {error.strerror}",
                hint="Check its permissions.",
                path=str(path),
            ) from error
    size = place.size(name)
    if size is None:
        raise NotFoundError(f"there is no piece {name}", hint="", asked=name)
    hasher = blake3()
    for at in range(0, size, _STEP):
        hasher.update(place.read(name, at, min(_STEP, size - at)))
    return digest_of(hasher), size


def is_right(place: Place, name: str, wanted: str) -> bool:
    """Whether the piece has these bytes: what a damaged disk left under the name does not count."""
    try:
        return digest(place, name)[0] == wanted
    except (NotFoundError, StoreError):
        # Whatever keeps it from being read, putting it anew either mends it or fails with the reason.
        return False


def verify(place: Place, wanted: str) -> None:
    """As `Store.verify` says."""
    try:
        found, size = digest(place, name_of(wanted))
    except NotFoundError as error:
        raise not_held(wanted) from error
    if found != wanted:
        raise DigestMismatchError(
            f"the bytes kept as {wanted} changed: they are {found} now ({size} bytes)",
            hint="Something else wrote to the store, or the disk is failing. Pull the model again: that puts the "
            "right bytes in their place.",
            digest=wanted,
            found=found,
            size=size,
        )
